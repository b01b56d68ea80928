"""Reads ROS parameter files as rclpy does, without ROS: `load_config`.

The types are those of rcl_yaml_param_parser, which differ from YAML's: `5e0`, `.5` and `08` are floats, `010` is the
integer 8, `y` and `off` are booleans, `null` and `1_000` are strings.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from decaf_ros.config import DecafConfig, replace

# Parameters and prefixes that every rclpy node declares itself and reads from the same files.
RCLPY_PARAMETERS = ("use_sim_time", "start_type_description_service", "qos_overrides.")

_log = logging.getLogger(__name__)

# The node's name, and its full name with the launch file's default namespace.
NODE_NAME = "segmenter"
DEFAULT_NODE = f"/decaf/{NODE_NAME}"

_KEY = "ros__parameters"
_TRUE = ("Y", "y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("N", "n", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
# As strtoll (base 0) and strtod of C read a whole text.
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_HEXADECIMAL = re.compile(r"[+-]?0[xX]([\da-fA-F]+\.?[\da-fA-F]*|\.[\da-fA-F]+)([pP][+-]?\d+)?", re.ASCII)
_SPECIAL = re.compile(r"[+-]?(inf|infinity|nan)|(?-i:[+-]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))", re.IGNORECASE | re.ASCII)


def load_config(path: str | Path, base: DecafConfig | None = None, node: str | None = None) -> DecafConfig:
    """Reads a ROS parameter file as the node does, over `base` (the defaults if None).

    Names may be nested or dotted. Parameters outside the stages of `DecafConfig` (another node's, or misspelt) are
    logged and ignored. node: see `read_parameters`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a ROS parameter file, no matching section, an unknown option of a stage, or a bad value.
    """
    given = read_parameters(path, node)
    base = base or DecafConfig()
    stages = {stage.name for stage in dataclasses.fields(base)}
    foreign = sorted(name for name in given if name.split(".")[0] not in stages)
    unknown = [name for name in foreign if not name.startswith(RCLPY_PARAMETERS)]
    if unknown:
        _log.warning("%s: parameters that decaf_ros does not know are ignored: %s", path, ", ".join(unknown))
    try:
        return replace(base, {name: value for name, value in given.items() if name not in foreign})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_parameters(path: str | Path, node: str | None = None) -> dict[str, Any]:
    """The parameters of a node in a ROS parameter file, by dotted name.

    Every section whose name or pattern (`/**`, `/*/segmenter`) matches the node counts; later ones override earlier
    ones.

    Args:
        path: the file.
        node: full name of the node. None: the one section of a node `segmenter` (in any namespace) if the file has one,
            else `/decaf/segmenter`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a ROS parameter file, no section of the node, or sections of several segmenters.
    """
    try:
        with open(path, "rb") as stream:
            values = list(_values(yaml.parse(stream, Loader=yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    sections: dict[str, dict[str, Any]] = {}
    for keys, value in values:
        place = keys.index(_KEY) if _KEY in keys else 0
        if place == 0 or place == len(keys) - 1 and value is not None:
            raise ValueError(f"{path}: expected a ROS parameter file, '/**: ros__parameters: STAGE: FIELD: VALUE'")
        section = sections.setdefault("/".join(keys[:place]), {})
        if value is not None:
            section[".".join(keys[place + 1 :])] = value
    full_names = {section: "/" + section.strip("/") for section in sections}
    if node is None:
        ours = sorted({name for name in full_names.values() if name.endswith(f"/{NODE_NAME}") and "*" not in name})
        if len(ours) > 1:
            raise ValueError(f"{path}: expected one {NODE_NAME}, got {', '.join(ours)}; choose one with --node")
        node = ours[0] if ours else DEFAULT_NODE
    matching = [section for section, name in full_names.items() if _pattern(name).fullmatch(node)]
    if not matching:
        raise ValueError(f"{path}: expected a section '/**' or '{node}', got {', '.join(sections)}")
    return {name: value for section in matching for name, value in sections[section].items()}


def _pattern(name: str) -> re.Pattern[str]:
    """`*` is one namespace or name, `**` any number of them."""
    escaped = re.escape(name).replace(r"/\*\*", r"(/\w+)*").replace(r"/\*", r"(/\w+)")
    return re.compile(escaped, re.ASCII)


def plain_value(text: str) -> bool | int | float | str:
    """An unquoted scalar with its type."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-")
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
        number = int(text, base)
        if -(2**63) <= number < 2**63:
            return number
    if _DECIMAL.fullmatch(text):
        value = float(text)
        # Out of range is a string.
        return text if abs(value) == float("inf") or value == 0 and re.match(r"[^eE]*[1-9]", text) else value
    if _HEXADECIMAL.fullmatch(text):
        return float.fromhex(text)
    return float(text.replace(".", "")) if _SPECIAL.fullmatch(text) else text


def _values(events: Iterator[yaml.Event]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys and value of every entry of all documents, in order; None for an empty mapping."""
    empty = True
    for event in events:
        if isinstance(event, yaml.MappingStartEvent):
            empty = False
            yield from _mapping(events, ())
        elif isinstance(event, yaml.NodeEvent):
            raise ValueError(f"expected a ROS parameter file, got no mapping in line {_line(event)}")
    if empty:
        raise ValueError("expected a ROS parameter file, got an empty one")


def _mapping(events: Iterator[yaml.Event], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    empty = True
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        empty = False
        if not isinstance(key, yaml.ScalarEvent) or not key.value:
            raise ValueError(f"line {_line(key)}: expected a name")
        event, path = next(events), (*keys, key.value)
        if isinstance(event, yaml.MappingStartEvent):
            yield from _mapping(events, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(_scalar(item))
            if len({type(item) for item in items}) > 1:
                raise ValueError(f"line {_line(event)}: expected values of one type, got {items}")
            yield path, items
        else:
            yield path, _scalar(event)
    if empty:
        yield keys, None


def _scalar(event: yaml.Event) -> Any:
    line = _line(event)
    if not isinstance(event, yaml.ScalarEvent):
        raise ValueError(f"line {line}: expected a value (rclpy reads no aliases and no nested lists)")
    quoted = event.style in ("'", '"')
    if not event.value and not quoted:
        raise ValueError(f"line {line}: expected a value, got none")
    return event.value if quoted or event.tag == "tag:yaml.org,2002:str" else plain_value(event.value)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0
