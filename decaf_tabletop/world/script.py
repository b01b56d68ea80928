"""The events of a long scene, drawn from a seed: objects move, leave, hide and come back, with pauses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from decaf_tabletop.world.layout import GAP_M
from decaf_tabletop.world.looks import look_away, turn
from decaf_tabletop.world.plan import Plan, slide
from decaf_tabletop.world.routes import AWAY_M, Leg, fall_s, travel_s

_TRIES = 60
_ROUND = ("can", "bottle", "ball")
_PUSHED = ("can", "bottle", "plate", "cone")
# An object must be less visible than this share while it is hidden.
_HIDDEN_SHARE = 0.1
# Events after the opening, in random order; they repeat in another order in a long clip.
_AGENDA = ("hide", "leave", "pass_by", "look_away", "leave", "hide", "push", "turn", "slide")
_OPENINGS = ("slide", "pass_by", "slide", "push")
_CAMERA = {"turn": turn, "look_away": look_away}


class Script:
    """Writes events into a plan. An event's method returns False if it does not fit, and then changes nothing."""

    def __init__(self, rng: np.random.Generator, plan: Plan, seconds: float) -> None:
        self._rng = rng
        self._plan = plan
        self._seconds = seconds

    def write(self) -> list[str]:
        """Fills the time with events; returns their names."""
        rng, plan = self._rng, self._plan
        done: list[str] = []
        agenda = [str(rng.choice(_OPENINGS)), str(rng.choice(_OPENINGS))]
        plan.time_s = rng.uniform(0.4, 1.2)
        while plan.time_s < self._seconds - 6.0:
            due = [index for index, due_s in plan.away.items() if due_s <= plan.time_s]
            if due and self._come_back(due[0]):
                done.append("come_back")
            else:
                if len(agenda) < 3:
                    agenda += [str(name) for name in rng.permutation(_AGENDA)]
                # An event that does not fit now may fit later.
                fitting = next((name for name in agenda[:4] if self._event(name)()), None)
                if fitting is None:
                    agenda = agenda[1:]
                    plan.time_s += 0.5
                    continue
                agenda.remove(fitting)
                done.append(fitting)
            plan.time_s += rng.uniform(0.3, 1.8)
        return done

    def _event(self, name: str) -> Callable[[], bool]:
        if name in _CAMERA:
            return functools.partial(_CAMERA[name], self._rng, self._plan)
        method: Callable[[], bool] = getattr(self, f"_{name}")
        return method

    def _slide(self) -> bool:
        """An object slides, or a ball rolls, to another place."""
        index = self._any(self._plan.on_table)
        for _ in range(_TRIES):
            goal = self._draw_place()
            if 0.09 < np.linalg.norm(goal - self._plan.place(index)) < 0.35 and self._plan.can_rest(index, goal):
                if self._move(index, [goal]):
                    return True
        return False

    def _leave(self) -> bool:
        """An object is lifted out of the image, or slides out beside it, and is due back some seconds later."""
        plan, rng = self._plan, self._rng
        if len(plan.on_table) < 3 or plan.time_s > self._seconds - 15.0:
            return False
        index = self._any(plan.on_table)
        absent_s = rng.uniform(1.5, 6.0)
        if rng.uniform() < 0.5:
            end_s = plan.time_s + travel_s(AWAY_M, rng.uniform(0.25, 0.4))
            x, y = plan.place(index)
            route = plan.routes[index].with_legs(Leg("lift", plan.time_s, end_s, (float(x), float(y), AWAY_M)))
            if not plan.is_free({index: route}, end_s):
                return False
            plan.commit({index: route}, end_s)
            plan.away[index] = end_s + absent_s
            return True
        right, away = plan.axes()
        for _ in range(_TRIES):
            angle = rng.uniform(-0.3, 0.3)
            direction = rng.choice([-1, 1]) * (math.cos(angle) * right + math.sin(angle) * away)
            goals = (plan.place(index) + distance * direction for distance in np.arange(0.1, 0.9, 0.02))
            goal = next((xy for xy in goals if plan.out_of_view(index, (*xy.tolist(), 0.0))), None)
            if goal is not None and plan.on_top(goal) and self._move(index, [goal], (0.14, 0.25)):
                plan.away[index] = plan.time_s + absent_s
                return True
        return False

    def _come_back(self, index: int) -> bool:
        """An object that is away slides back, is put down, or is dropped."""
        plan, rng = self._plan, self._rng
        for _ in range(_TRIES):
            goal = self._draw_place()
            if not plan.can_rest(index, goal):
                continue
            if plan.routes[index].end_m[2] == 0:
                if self._move(index, [goal]):
                    del plan.away[index]
                    return True
                continue
            above = (float(goal[0]), float(goal[1]), AWAY_M)
            there_s = plan.time_s + travel_s(float(np.linalg.norm(goal - plan.place(index))), 0.5)
            dropped = rng.uniform() < 0.5
            end_s = there_s + (fall_s(AWAY_M) if dropped else travel_s(AWAY_M, rng.uniform(0.2, 0.3)))
            route = plan.routes[index].with_legs(
                Leg("carry", plan.time_s, there_s, above),
                Leg("drop" if dropped else "lower", there_s, end_s, (*above[:2], 0.0)),
            )
            if plan.is_free({index: route}, end_s):
                plan.commit({index: route}, end_s)
                del plan.away[index]
                return True
        return False

    def _hide(self) -> bool:
        """One object hides another for seconds: it slides in front of it, or the other one slides behind it."""
        plan, rng = self._plan, self._rng
        if plan.time_s > self._seconds - 12.0:
            return False
        pairs = [
            (front, back)
            for front in plan.on_table
            for back in plan.on_table
            if plan.objects[front].thing.size == "large" and plan.objects[back].thing.size == "small"
        ]
        for front, back in [pairs[index] for index in rng.permutation(len(pairs))]:
            for _ in range(_TRIES // 3):
                mover, stayer, sign = (front, back, -1) if rng.uniform() < 0.6 else (back, front, 1)
                eye, _ = plan.tour.at(plan.time_s)
                line = plan.place(stayer) - eye[:2]
                line /= np.linalg.norm(line)
                distance = plan.reach(front, back) + GAP_M + rng.uniform(0.003, 0.012)
                goal = plan.place(stayer) + sign * distance * line
                places = {stayer: plan.place(stayer), mover: goal}
                others = [other for other in plan.on_table if other not in (mover, stayer)]
                if not plan.can_rest(mover, goal, others):
                    continue
                if plan.visible_share(back, places[back], front, places[front]) > _HIDDEN_SHARE:
                    continue
                if self._move_and_leave_again(mover, goal, line, rng.uniform(2.2, 5.0)):
                    return True
        return False

    def _move_and_leave_again(self, index: int, goal: np.ndarray, line: np.ndarray, stay_s: float) -> bool:
        """Slides to `goal`, stays, and slides to a free place, either straight or past a point beside the goal."""
        plan, rng = self._plan, self._rng
        before, time_s = plan.routes[index], plan.time_s
        for _ in range(6):
            side = goal + np.array([-line[1], line[0]]) * rng.choice([-1, 1]) * rng.uniform(0.1, 0.2)
            ways = [[goal], [side, goal]] if plan.in_view(index, side) else [[goal]]
            if not any(self._move(index, way) for way in ways):
                continue
            plan.time_s += stay_s
            for _ in range(_TRIES):
                end = self._draw_place()
                if np.linalg.norm(end - goal) > 0.1 and plan.can_rest(index, end):
                    if self._move(index, [end]) or (plan.in_view(index, side) and self._move(index, [side, end])):
                        return True
            plan.routes[index], plan.time_s = before, time_s
        return False

    def _pass_by(self) -> bool:
        """An object slides close past another one of its category or colour."""
        plan, rng = self._plan, self._rng
        things = [placed.thing for placed in plan.objects]
        pairs = [
            (mover, other)
            for mover in plan.on_table
            for other in plan.on_table
            if mover != other
            and (things[mover].category == things[other].category or things[mover].color == things[other].color)
        ]
        for mover, other in [pairs[index] for index in rng.permutation(len(pairs))]:
            way = plan.place(other) - plan.place(mover)
            length = float(np.linalg.norm(way))
            for _ in range(_TRIES // 2):
                clearance = plan.reach(mover, other) + GAP_M + rng.uniform(0.003, 0.025)
                if clearance >= 0.95 * length:
                    break
                angle = rng.choice([-1, 1]) * math.asin(clearance / length)
                turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                goal = plan.place(mover) + turn @ way * rng.uniform(1.3, 2.0)
                if plan.can_rest(mover, goal) and self._move(mover, [goal]):
                    return True
        return False

    def _push(self) -> bool:
        """An object slides up to another one and pushes it on."""
        plan, rng = self._plan, self._rng
        categories = [placed.thing.category for placed in plan.objects]
        pairs = [
            (pusher, pushed)
            for pusher in plan.on_table
            for pushed in plan.on_table
            if pusher != pushed
            and categories[pusher] in _ROUND
            and categories[pushed] in _PUSHED
            and (categories[pusher], categories[pushed]) != ("ball", "plate")
        ]
        for pusher, pushed in [pairs[index] for index in rng.permutation(len(pairs))]:
            way = plan.place(pushed) - plan.place(pusher)
            length = float(np.linalg.norm(way))
            direction = way / length
            before = length - plan.reach(pusher, pushed) - 0.001
            for _ in range(10):
                after, speed = rng.uniform(0.06, 0.16), rng.uniform(0.08, 0.16)
                meet_s = plan.time_s + travel_s(before, speed)
                end_s = meet_s + travel_s(after, speed)
                goal, pushed_goal = (plan.place(index) + after * direction for index in (pusher, pushed))
                goal += before * direction
                contact = plan.place(pusher) + before * direction
                others = [other for other in plan.on_table if other not in (pusher, pushed)]
                if not (plan.can_rest(pusher, goal, others) and plan.can_rest(pushed, pushed_goal, others)):
                    continue
                routes = {
                    pusher: plan.routes[pusher].with_legs(
                        slide(plan.time_s, meet_s, contact), slide(meet_s, end_s, goal)
                    ),
                    pushed: plan.routes[pushed].with_legs(slide(meet_s, end_s, pushed_goal)),
                }
                if plan.is_free(routes, end_s, frozenset((pusher, pushed))):
                    plan.commit(routes, end_s)
                    return True
        return False

    def _move(self, index: int, way: Sequence[np.ndarray], speeds_m_s: tuple[float, float] = (0.08, 0.22)) -> bool:
        """Slides an object along the points of `way` if it then collides with nothing."""
        plan = self._plan
        speed = self._rng.uniform(*speeds_m_s)
        legs, here, time_s = [], plan.place(index), plan.time_s
        for point in way:
            end_s = time_s + travel_s(float(np.linalg.norm(point - here)), speed)
            legs.append(slide(time_s, end_s, point))
            here, time_s = point, end_s
        route = plan.routes[index].with_legs(*legs)
        if not plan.is_free({index: route}, time_s):
            return False
        plan.commit({index: route}, time_s)
        return True

    def _any(self, indices: Sequence[int]) -> int:
        return indices[int(self._rng.integers(len(indices)))]

    def _draw_place(self) -> np.ndarray:
        return self._rng.uniform((-0.32, -0.18), (0.32, 0.32))
