"""The action `segment`: a query as a goal, with feedback, cancellation and a result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer

from decaf_ros.action import Segment
from decaf_ros.config.stream import POLICIES
from decaf_ros.io.messages import frame_image, tracklet_array
from decaf_ros.nodes.message_factory import make_message
from decaf_ros.types import FrameResult, Output, Query, QueryEvent, QueryState, StageEvent
from decaf_ros.types.checks import quoted

if TYPE_CHECKING:
    # mypy does not see the nested classes of Segment.
    from decaf_ros.action._segment import Segment_Feedback, Segment_Goal, Segment_Result

_GoalHandle: TypeAlias = "ServerGoalHandle[Segment_Goal, Segment_Result, Segment_Feedback]"

# A timer counts nanoseconds in 64 bits, which overflow after 292 years.
_LONGEST_TIMEOUT_S = 1e9
# Longest wait for the first frame of a tracked goal.
_FIRST_FRAME_S = 2.0
# How long a client can fetch the result of an ended goal. It holds a label image, so rclpy's 15 minutes up to Jazzy
# take much memory where many goals are sent; its 10 s since Kilted are short.
_RESULT_KEPT_S = 300


class _Goal:
    """A goal and its query. Two threads fill `result`, one at a time; the executor thread waits for `finished`."""

    def __init__(self, handle: _GoalHandle, query: Query) -> None:
        self.handle = handle
        self.query = query
        self.result = Segment.Result(query_id=query.id, presence=-1.0)
        self.tracked = False
        self.tracked_since_s = 0.0
        self.finished: Future[None] = Future()

    def set_state(self, event: QueryEvent) -> None:
        self.result.state, self.result.text, self.result.category = int(event.state), event.text, event.category
        if event.presence is not None:
            self.result.presence = float(event.presence.score)
        self.tracked_since_s = time.monotonic()
        self.tracked = event.state == QueryState.TRACKING

    def set_frame(self, result: FrameResult) -> None:
        result = result.of(self.query)
        self.result.tracklets = tracklet_array(make_message, result)
        self.result.masks = frame_image(make_message, result.labels, result.frame)

    def send_feedback(self, state: QueryState, stage: str, progress: float) -> None:
        # Any: rclpy wrongly annotates the parameter as the wrapper message.
        feedback: Any = Segment.Feedback(
            query_id=self.query.id, state=int(state), stage=stage, progress=float(progress)
        )
        self.handle.publish_feedback(feedback)


class SegmentAction:
    """Serves the action on a single-threaded executor.

    A goal succeeds when its query is tracked. Its result holds the first published frame of the targets, or no masks if
    no frame comes within _FIRST_FRAME_S. A goal is cancelled if its client asked for it. Every other end (NOT_FOUND,
    FAILED, SUPERSEDED, a timeout, deactivation of the node) aborts it; `state` and `text` of the result give the
    reason. Goals are rejected while the node is not active, and for an invalid `timeout_s`.

    The server lives as long as the node, so that results can be sent after a deactivation.

    Args:
        node: the node.
        name: name of the action.
        new_query: makes a query from its text and policy.
        is_active: whether the node is active.
        ask: passes a query to the worker thread; returns False if there is none.
        cancel: ends a query at once; gets its id and a reason.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        new_query: Callable[[str, str], Query],
        is_active: Callable[[], bool],
        ask: Callable[[Query], bool],
        cancel: Callable[[str, str], object],
    ) -> None:
        self._node = node
        self._name = name
        self._new_query = new_query
        self._is_active = is_active
        self._ask = ask
        self._cancel = cancel
        self._goals: dict[str, _Goal] = {}
        # Held while a goal changes.
        self._lock = threading.RLock()
        # Any: rclpy does not annotate that the callback may be a coroutine.
        self._server: ActionServer[Any, Any, Any] = ActionServer(
            node,
            Segment,
            name,
            self._execute,
            goal_callback=self._accept,
            cancel_callback=self._accept_cancel,
            result_timeout=_RESULT_KEPT_S,
        )

    @property
    def busy(self) -> bool:
        """Whether a goal has not ended yet."""
        return bool(self._goals)

    def destroy(self) -> None:
        self._server.destroy()

    # Called on the executor thread.

    def _accept(self, request: Segment_Goal) -> GoalResponse:
        reason = ""
        if not self._is_active():
            reason = "the node is not active"
        elif not 0 <= request.timeout_s <= _LONGEST_TIMEOUT_S:
            reason = f"timeout_s: expected 0 to {_LONGEST_TIMEOUT_S:g}, got {request.timeout_s:g}"
        elif request.policy not in ("", *POLICIES):
            reason = f"policy: expected one of {', '.join(POLICIES)}, or nothing, got {quoted(request.policy)}"
        elif not request.query.strip():
            reason = "query: expected a question, got an empty text"
        if reason:
            self._node.get_logger().warning(f"action {self._name}: goal rejected: {reason}")
        return GoalResponse.REJECT if reason else GoalResponse.ACCEPT

    async def _execute(self, handle: _GoalHandle) -> Segment_Result:
        if handle.is_cancel_requested:
            handle.canceled()
            return Segment.Result(state=int(QueryState.CANCELLED), text="cancelled before it was asked", presence=-1.0)
        if not self._is_active():  # deactivated since the goal was accepted
            handle.abort()
            return Segment.Result(state=int(QueryState.CANCELLED), text="the node is not active", presence=-1.0)
        goal = _Goal(handle, self._new_query(handle.request.query, handle.request.policy))
        self._goals[goal.query.id] = goal
        timers: list[Timer] = []
        try:
            timers.append(self._start_frame_timer(goal))
            if handle.request.timeout_s > 0:
                timers.append(self._start_timeout(goal, handle.request.timeout_s))
            if not self._ask(goal.query):
                self._finish(goal, QueryState.CANCELLED, "the node is not active")
            await goal.finished
        finally:
            del self._goals[goal.query.id]
            for timer in timers:
                self._node.destroy_timer(timer)
        if goal.result.state == QueryState.TRACKING:
            handle.succeed()
        elif goal.result.state == QueryState.CANCELLED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return goal.result

    def _start_frame_timer(self, goal: _Goal) -> Timer:
        """Ends a tracked goal if no frame comes, for example because the camera stopped or a bag ended."""

        def check() -> None:
            waited_s = time.monotonic() - goal.tracked_since_s
            with self._lock:
                if goal.tracked and not goal.finished.done() and waited_s > _FIRST_FRAME_S:
                    self._wake(goal)

        return self._node.create_timer(_FIRST_FRAME_S / 4, check, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _start_timeout(self, goal: _Goal, timeout_s: float) -> Timer:
        def give_up() -> None:
            timer.cancel()
            self._give_up(goal, f"no answer within {timeout_s:g} s")

        # Real time: the timeout must also work while a simulated clock stands still.
        timer = self._node.create_timer(timeout_s, give_up, clock=Clock(clock_type=ClockType.STEADY_TIME))
        return timer

    def _accept_cancel(self, handle: _GoalHandle) -> CancelResponse:
        for goal in self._goals.values():
            if goal.handle is handle:
                self._give_up(goal, "cancelled by the client of the action")
        return CancelResponse.ACCEPT

    def _give_up(self, goal: _Goal, reason: str) -> None:
        """Ends the goal now, whatever the worker thread does."""
        try:
            self._cancel(goal.query.id, reason)
        finally:
            self._finish(goal, QueryState.CANCELLED, reason)

    # Called on any thread.

    def watch(self, output: Output) -> None:
        """Updates the goals with an output of the core, or with the end of a query."""
        with self._lock:
            for goal in [goal for goal in list(self._goals.values()) if not goal.finished.done()]:
                self._update(goal, output)

    def _update(self, goal: _Goal, output: Output) -> None:
        if isinstance(output, StageEvent) and output.query.id == goal.query.id:
            goal.send_feedback(QueryState.GROUNDING, output.stage, output.progress)
        elif isinstance(output, QueryEvent) and output.query.id == goal.query.id:
            if output.state == QueryState.ENDED:
                self._finish(goal, QueryState.CANCELLED, f"tracking ended before its first frame: {output.text}")
                return
            goal.send_feedback(output.state, "", float(output.state.is_answer))
            goal.set_state(output)
            if output.state.is_answer and not goal.tracked:
                self._wake(goal)
        elif isinstance(output, FrameResult) and goal.tracked:
            goal.set_frame(output)
            self._wake(goal)

    def end_all(self, reason: str) -> None:
        """Ends all goals."""
        for goal in list(self._goals.values()):
            self._finish(goal, QueryState.CANCELLED, reason)

    def _finish(self, goal: _Goal, state: QueryState, text: str) -> None:
        with self._lock:
            if not goal.finished.done():
                goal.result.state, goal.result.text = int(state), text
                self._wake(goal)

    def _wake(self, goal: _Goal) -> None:
        goal.finished.set_result(None)
        # The executor resumes a waiting coroutine only when it wakes up.
        executor = self._node.executor
        assert executor is not None, "goals end only while the node spins"
        executor.wake()
