"""The command `decaf parameters`: the table of all parameters, docs/parameters.md."""

from __future__ import annotations

import argparse

from decaf_ros.config import DecafConfig, options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `parameters` to the commands of `decaf`."""
    parser = commands.add_parser("parameters", help="print the table of all parameters as Markdown")
    parser.set_defaults(configure=lambda args: None, run=run)


def run(args: argparse.Namespace, config: None) -> None:
    """Prints the table."""
    print(parameter_table(), end="")


def parameter_table() -> str:
    """All parameters as a Markdown document (docs/parameters.md)."""
    lines = [
        "# Parameters",
        "",
        "Made by `decaf parameters` from `decaf_ros/config/`. The names are ROS parameters of the node, keys of the",
        "YAML files in `config/` (one level per dot) and arguments of `decaf segment --set`. Live: may change while",
        "the node runs; others take effect when it is configured.",
    ]
    stage = None
    for option in options(DecafConfig()):
        if option.name.partition(".")[0] != stage:
            stage = option.name.partition(".")[0]
            lines += ["", f"## {stage}", "", "| Name | Default | Range | Live | Meaning |", "|---|---|---|---|---|"]
        value = f'"{option.value}"' if isinstance(option.value, str) else str(option.value).replace("()", "[]")
        if option.choices:
            allowed = ", ".join(option.choices)
        elif option.minimum is not None or option.maximum is not None:
            allowed = f"{option.minimum} to {option.maximum}"
        else:
            allowed = {bool: "true, false", str: "text", tuple: "names"}[type(option.value)]
        value = value.lower() if isinstance(option.value, bool) else value
        live = "yes" if option.live else ""
        lines.append(f"| `{option.name}` | `{value}` | {allowed} | {live} | {option.doc.replace('|', '/')} |")
    return "\n".join(lines) + "\n"
