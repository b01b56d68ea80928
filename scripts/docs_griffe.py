"""griffe extension for the API reference: lists of fields, and the options of decaf_ros/config/.

Docstrings describe a field as "name: meaning" on a line of its own. Markdown would join such lines, so they become list
items. An option's default and description are arguments of `option`; they become the field's value and docstring.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Attribute, Class, Docstring, ExprCall, Extension, Function, Object


class Fields(Extension):
    """Prepares docstrings of classes and functions for Markdown."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        list_fields(func, {parameter.name for parameter in func.parameters})

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        names = set(cls.members)
        init = cls.members.get("__init__")
        if isinstance(init, Function):
            names |= {parameter.name for parameter in init.parameters}
        list_fields(cls, names)
        for member in cls.members.values():
            if isinstance(member, Attribute):
                read_option(member)


def list_fields(item: Object, names: set[str]) -> None:
    """Turns the lines "name: meaning" of a docstring, with their continuation lines, into a list."""
    if item.docstring is None:
        return
    lines: list[str] = []
    in_list = False
    for line in item.docstring.value.splitlines():
        field = re.match(r"(\w+(?:, \w+)*): ", line)
        if field and set(field[1].split(", ")) <= names:
            if not in_list and lines and lines[-1]:
                lines.append("")
            in_list = True
            described = ", ".join(f"`{name}`" for name in field[1].split(", "))
            lines.append(f"- {described}: {line[field.end() :]}")
        else:
            # A section such as "Raises:" or a paragraph ends the list.
            in_list = in_list and bool(line) and not line.endswith(":")
            lines.append(f"  {line}" if in_list else line)
    item.docstring.value = "\n".join(lines)


def read_option(field: Attribute) -> None:
    """Takes default and description out of `_option(default, description, ...)`."""
    call = field.value
    if isinstance(call, ExprCall) and str(call.function) == "option":
        default, description = call.arguments[:2]
        field.value = default
        field.docstring = Docstring(ast.literal_eval(str(description)), parent=field)
