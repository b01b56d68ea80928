"""The services `add_query`, `cancel_query` and `list_queries`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

from decaf_ros.config import DecafConfig
from decaf_ros.online.query import refusal
from decaf_ros.srv import AddQuery, CancelQuery, ListQueries
from decaf_ros.types import Query, QueryEvent

if TYPE_CHECKING:
    # mypy does not see the nested classes of services.
    from decaf_ros.online.handlers import Handlers
    from decaf_ros.srv._add_query import AddQuery_Request, AddQuery_Response
    from decaf_ros.srv._cancel_query import CancelQuery_Request, CancelQuery_Response
    from decaf_ros.srv._list_queries import ListQueries_Request, ListQueries_Response

# Longest wait for the worker thread, which may be busy with a unit of a grounding.
_LIST_S = 1.0


class QueryServices:
    """Serves the queries of a camera.

    Requests are answered at once, that for the list when the worker thread has come to it: after the commands before it
    and a unit of a grounding, but at most after _LIST_S. The executor does not wait for it.

    Args:
        node: the node.
        prefix: comes before the names of the services.
        config: returns the configuration.
        is_active: whether the node is active.
        new_query: makes a query from its text, policy and priority.
        ask: passes a query to the worker thread; returns False if there is none.
        end: ends a query, or all if the id is empty; gets a reason too, and returns the ids of those that it ended.
        events: returns the last events of the current queries.
        command: runs a function on the worker thread; returns False if there is none.
    """

    def __init__(
        self,
        node: Node,
        prefix: str,
        config: Callable[[], DecafConfig],
        is_active: Callable[[], bool],
        new_query: Callable[[str, str, int], Query],
        ask: Callable[[Query], bool],
        end: Callable[[str, str], list[str]],
        events: Callable[[], tuple[QueryEvent, ...]],
        command: Callable[[Callable[[Handlers], None]], bool],
    ) -> None:
        self._node = node
        self._config = config
        self._is_active = is_active
        self._new_query = new_query
        self._ask = ask
        self._end = end
        self._events = events
        self._command = command
        # A callback that waits for the worker thread would keep the others of an exclusive group waiting.
        group = ReentrantCallbackGroup()
        # Any: rclpy does not annotate that a callback may be a coroutine.
        callbacks: dict[str, tuple[Any, Any]] = {
            "add_query": (AddQuery, self._add),
            "cancel_query": (CancelQuery, self._cancel),
            "list_queries": (ListQueries, self._list),
        }
        self._services = [
            node.create_service(kind, prefix + name, callback, callback_group=group)
            for name, (kind, callback) in callbacks.items()
        ]

    def destroy(self) -> None:
        for service in self._services:
            self._node.destroy_service(service)

    def _add(self, request: AddQuery_Request, response: AddQuery_Response) -> AddQuery_Response:
        text, config = request.text.strip(), self._config()
        if not self._is_active():
            response.text = "the node is not active"
        elif config.queries.mode != "add":
            response.text = f"queries.mode: expected add, got {config.queries.mode}"
        elif not text:
            response.text = "text: expected a question, got an empty text"
        else:
            response.text = refusal(text, request.policy, config)
        if response.text:
            return response
        query = self._new_query(text, request.policy, request.priority)
        response.accepted, response.query_id = self._ask(query), query.id
        return response

    def _cancel(self, request: CancelQuery_Request, response: CancelQuery_Response) -> CancelQuery_Response:
        response.cancelled = self._end(request.query_id, "cancelled by the service cancel_query")
        return response

    async def _list(self, request: ListQueries_Request, response: ListQueries_Response) -> ListQueries_Response:
        await self._caught_up()
        events, default_policy = self._events(), self._config().regrounding.policy
        response.query_ids = [event.query.id for event in events]
        response.texts = [event.query.text for event in events]
        response.states = [int(event.state) for event in events]
        response.policies = [event.query.policy or default_policy for event in events]
        response.priorities = [event.query.priority for event in events]
        return response

    async def _caught_up(self) -> None:
        """Returns when the worker thread has run the commands before, after _LIST_S at most, or without a worker."""
        done: Future[None] = Future()

        def finish() -> None:
            done.set_result(None)
            # The executor resumes a waiting coroutine only when it wakes up.
            executor = self._node.executor
            assert executor is not None, "requests come only while the node spins"
            executor.wake()

        if not self._command(lambda handlers: finish()):
            return
        # Steady time: a simulated clock may stand still.
        timer = self._node.create_timer(_LIST_S, finish, clock=Clock(clock_type=ClockType.STEADY_TIME))
        try:
            await done
        finally:
            self._node.destroy_timer(timer)
