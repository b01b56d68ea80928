"""ROS parameters from the configuration: declared, read, and changed while the node runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from decaf_ros.config import DecafConfig, Option, options, replace
from decaf_ros.io.parameter_files import RCLPY_PARAMETERS


def descriptor(option: Option) -> ParameterDescriptor:
    """Description, range and choices of an option, for `ros2 param describe` and graphical tools."""
    constraints = [f"one of: {', '.join(option.choices)}"] if option.choices else []
    if not option.live:
        constraints.append("takes effect when the node is configured")
    message = ParameterDescriptor(
        name=option.name, description=option.doc, additional_constraints="; ".join(constraints), read_only=False
    )
    if option.minimum is not None:
        bounds = {"from_value": option.minimum, "to_value": option.maximum}
        if isinstance(option.value, float):
            message.floating_point_range = [FloatingPointRange(**bounds)]
        else:
            message.integer_range = [IntegerRange(**bounds, step=1)]
    # A statically typed double refuses the integer 0, and an empty list has the type of bytes. The configuration checks
    # types itself.
    message.dynamic_typing = isinstance(option.value, (float, tuple))
    return message


class Parameters:
    """The parameters of a node as a DecafConfig, which is always valid.

    The node must be made with `automatically_declare_parameters_from_overrides`, so that unknown parameters are found.
    While `locked` (from configuration to clean-up) only live options can change. `on_change` gets each new
    configuration, on the thread of the parameter service.

    Raises ValueError for an unknown parameter of a stage, and for a bad value.
    """

    def __init__(self, node: Node, on_change: Callable[[DecafConfig], None]) -> None:
        self.locked = False
        self._on_change = on_change
        given = node.get_parameters_by_prefix("")
        stages = {option.name.split(".")[0] for option in options(DecafConfig())}
        overrides = {name: parameter.value for name, parameter in given.items() if name.split(".")[0] in stages}
        self.config = replace(DecafConfig(), overrides)
        for name in overrides:
            node.undeclare_parameter(name)
        for option in options(self.config):
            value = list(option.value) if isinstance(option.value, tuple) else option.value
            node.declare_parameter(option.name, value, descriptor(option), ignore_override=True)
        foreign = sorted(name for name in given if name not in overrides and not name.startswith(RCLPY_PARAMETERS))
        if foreign:
            node.get_logger().warning(f"parameters that decaf_ros does not know are ignored: {', '.join(foreign)}")
        node.add_on_set_parameters_callback(self._set)

    def _set(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        """Sets all parameters or none."""
        known = {option.name: option for option in options(self.config)}
        changes = {
            parameter.name: tuple(parameter.value) if isinstance(parameter.value, list) else parameter.value
            for parameter in parameters
            if parameter.name in known
        }
        fixed = [name for name, value in changes.items() if not known[name].live and value != known[name].value]
        if self.locked and fixed:
            reason = (
                f"{', '.join(fixed)}: takes effect only when the node is configured; "
                "deactivate it, clean it up, set it, and configure again"
            )
            return SetParametersResult(successful=False, reason=reason)
        try:
            self.config = replace(self.config, changes)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if changes:
            self._on_change(self.config)
        return SetParametersResult(successful=True)
