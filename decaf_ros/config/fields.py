"""Options as fields of dataclasses: description, range, choices, whether they may change while the node runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from decaf_ros.types.checks import quoted


class Option(NamedTuple):
    """One configuration field. live: may change while running; others take effect when the node is configured."""

    name: str
    value: Any
    doc: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    live: bool


def option(
    default: Any,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """A field of a `Checked` dataclass; its arguments are those of `Option`."""
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices, "live": live}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Checked:
    """Base class that checks every field's type, range and choices on construction."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value):
                continue
            name = f"{type(self).__name__}.{field.name}"
            kind = type(field.default)
            if kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, field.name, value)
            if type(value) is not kind:
                raise ValueError(f"{name}: expected {kind.__name__}, got {quoted(value)} ({type(value).__name__})")
            low, high, choices = (field.metadata[key] for key in ("minimum", "maximum", "choices"))
            if low is not None and not value >= low or high is not None and not value <= high:
                raise ValueError(f"{name}: expected a value in [{low}, {high}], got {quoted(value)}")
            if choices and value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {quoted(value)}")
