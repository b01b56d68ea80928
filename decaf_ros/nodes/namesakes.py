"""Other nodes with this node's name: ROS allows them, and both then answer and publish on the same topics."""

from __future__ import annotations

from rclpy.node import Node


class Namesakes:
    """Counts them, and says so in the log when their number changes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._count = 0

    def count(self) -> int:
        """Other nodes in the graph with this namespace and name."""
        own = (self._node.get_name(), self._node.get_namespace())
        count = max(0, self._node.get_node_names_and_namespaces().count(own) - 1)
        if count > self._count:
            self._node.get_logger().error(namesakes_text(self._node.get_fully_qualified_name(), count))
        elif count < self._count:
            self._node.get_logger().info(f"{count} other nodes have this node's name now")
        self._count = count
        return count


def namesakes_text(name: str, count: int) -> str:
    """Text about so many other nodes of this name."""
    others = "another node has" if count == 1 else f"{count} other nodes have"
    return (
        f"expected one node {name}, but {others} this name: all of them publish on its topics and take its queries; "
        "end it, or start one with another namespace (-r __ns:=/other); one that was killed is seen for about 20 s more"
    )
