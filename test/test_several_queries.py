"""Several queries on one stream: their lives, their turns, their shared targets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scripted import Recorder, ScriptedDecaf, World, WorldTracker, frame, settings
from target_scenes import HIDDEN, NOW, QUERY, follow, make_candidate

from decaf_ros.online.targets import Targets
from decaf_ros.types import Query, QueryEvent, QueryState

SCENE = {"a": lambda time_s: (0, 0), "b": lambda time_s: (20, 0), "c": lambda time_s: (0, 12)}
ANSWERS = {"one": ["a"], "other": ["b"], "both": ["a", "b"], "third": ["c"], "none": []}


@pytest.fixture(autouse=True)
def _scripted_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def _recorder(between=None, world=None, answers=ANSWERS, **changes) -> Recorder:
    config = settings(**{"queries__mode": "add"} | changes)
    return Recorder(ScriptedDecaf(world or World(**SCENE), config, answers), between)


def _meant(run: Recorder, place: int = -1) -> dict[int, tuple[str, ...]]:
    """The queries of each target in a frame's result, by id."""
    return {target.id: target.query_ids for target in run.results[place].targets}


def _ids(run: Recorder) -> list[str]:
    return [live.query.id for live in run.online.queries]


def test_each_question_has_its_own_answer_and_goes_on():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1", "one")
    run.watch(range(16, 18))
    run.ask("q2", "third")
    run.ask("q3", "none")
    run.watch(range(18, 20))
    for query_id, answer in (("q1", "TRACKING"), ("q2", "TRACKING"), ("q3", "NOT_FOUND")):
        events = [state for one, state in run.events if one == query_id]
        assert events == ["RECEIVED", "GROUNDING", answer]
    assert _meant(run) == {1: ("q1",), 2: ("q2",)} and run.states() == {1: "TRACKED", 2: "TRACKED"}
    assert [query.id for query in run.results[-1].queries] == ["q1", "q2"] and run.results[-1].query.id == "q2"
    assert [event.query.id for event in run.online.queries.events] == ["q1", "q2"] == _ids(run)


def test_an_object_that_two_questions_mean_is_one_target():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1", "one")
    run.ask("q2", "both")
    run.watch(range(16, 20))
    assert _meant(run) == {1: ("q1", "q2"), 2: ("q2",)}
    assert run.of(QueryEvent)[-1].target_ids == (1, 2)
    assert run.online._follower.tracker.ids == (0, 2), "what is surely seen keeps its memory"
    labels = [target.label for target in run.results[-1].targets]
    assert labels == [1, 2] and set(np.unique(run.results[-1].labels)) == {0, 1, 2}


@pytest.mark.parametrize("ended, left", [("q1", {1: ("q2",), 2: ("q2",)}), ("q2", {1: ("q1",)})])
def test_a_query_that_ends_leaves_the_targets_of_the_others(ended, left):
    run = _recorder()
    run.decaf.category = "mug"
    run.watch(range(16))
    run.ask("q1", "one")
    run.decaf.category = "cup"
    run.ask("q2", "both")
    run.watch(range(16, 20))
    assert [target.category for target in run.results[-1].targets] == ["mug", "cup"]
    assert run.online.cancel(ended) == [ended]
    assert run.events[-1] == (ended, "ENDED") and run.of(QueryEvent)[-1].text == "cancelled on request"
    run.watch(range(20, 22))
    assert _meant(run) == left and set(run.states().values()) == {"TRACKED"}
    assert run.results[-1].targets[0].category == ("cup" if ended == "q1" else "mug")
    assert len(run.online._follower.tracker.ids) == len(left)


def test_two_targets_that_turn_out_to_be_one_object_have_the_queries_of_both():
    paths = SCENE | {"part": lambda time_s: (3, 0) if time_s < 102.05 else (0, 0)}
    run = _recorder(world=World(**paths), answers=ANSWERS | {"part": ["part"]}, regrounding__match_iou=0.9)
    run.watch(range(16))
    run.ask("q1", "one")
    run.ask("q2", "part")
    run.watch(range(16, 30))
    assert _meant(run, 20) == {1: ("q1",), 2: ("q2",)} and _meant(run) == {1: ("q1", "q2")}


def test_a_lost_target_that_another_question_means_comes_back_with_its_id():
    config, targets, other = settings(tracking__lost_after_s=0.25), Targets(), Query("q2", "it")
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    for number in range(1, 6):
        result = follow(targets, number, {0: HIDDEN}, config)
    assert result.targets == () and targets.sought(frame(5), 0.0, QUERY) and not targets.sought(frame(5), 0.0, other)
    hidden, seen = make_candidate(1, 0), make_candidate(2, 0)
    targets.merge([hidden], other, "", frame(6), config, may_join=False)
    assert targets.living == [], "a search for others"
    seen.seen_frame = frame(6)
    targets.merge([seen], other, "", seen.seen_frame, config)
    assert [(target.id, target.key, [*target.queries]) for target in targets.living] == [(1, 2, [QUERY, other])]


def test_a_candidate_that_cannot_bring_back_a_lost_target_of_another_question_is_a_new_one():
    config, targets, other = settings(tracking__lost_after_s=0.25), Targets(), Query("q2", "it")
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    for number in range(1, 6):
        follow(targets, number, {0: HIDDEN}, config)
    targets.merge([make_candidate(1, 0)], other, "", frame(6), config)  # hidden, too
    assert [(target.id, [*target.queries]) for target in targets.living] == [(2, [other])]


def test_a_question_about_one_object_takes_the_best_candidate_whosever_it_is():
    config, targets, other = settings(), Targets(), Query("q2", "it")
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    both = [make_candidate(1, 20), make_candidate(2, 0)]
    targets.merge(both, other, "", NOW, config, means_one=True)
    assert [[*target.queries] for target in targets.living] == [[QUERY], [other]]
    targets.drop(other)
    targets.merge(both[::-1], other, "", NOW, config, means_one=True)
    assert [[*target.queries] for target in targets.living] == [[QUERY, other]]


def test_at_most_max_targets_are_tracked_for_all_queries():
    run = _recorder(tracking__max_targets=2)
    run.watch(range(16))
    run.ask("q1", "both")
    run.ask("q2", "third")
    run.watch(range(16, 20))
    assert _meant(run) == {1: ("q1",), 2: ("q1",)}
    text = "tracking 0 targets: thing (all 2 places are taken: tracking.max_targets)"
    assert (run.of(QueryEvent)[-1].state, run.of(QueryEvent)[-1].text) == (QueryState.TRACKING, text)


def test_a_search_counts_misses_and_lets_things_join_for_its_own_query_only():
    """a is hidden; the search for it finds b, which belongs to the other question, and c, which belongs to none."""
    paths = SCENE | {"a": lambda time_s: None if time_s > 102.05 else (0, 0)}
    run = _recorder(world=World(**paths), tracking__lost_after_s=60.0, regrounding__stride=2, regrounding__max_misses=3)
    run.watch(range(16))
    run.ask("q1", "one")
    run.ask("q2", "other")
    run.watch(range(16, 25))
    run.decaf.script = {"one": ["b", "c"], "other": ["b"]}
    run.watch(range(25, 60))
    assert run.decaf.asked == ["one", "other", "one", "one"], "only the question whose target is hidden searches"
    assert _meant(run) == {1: ("q1",), 2: ("q2",)}
    assert {target.id: target.misses for target in run.online._targets.living} == {1: 2, 2: 0}


def test_a_question_has_its_own_policy_and_anchors():
    run = _recorder(regrounding__stride=2)
    run.watch(range(16))
    run.ask("q1", "one", policy="refresh")
    run.watch(range(16, 36))
    run.ask("q2", "other")
    run.watch(range(36, 80))
    assert run.decaf.asked.count("other") == 1 and run.decaf.asked.count("one") > 3
    first, second = run.online.queries
    assert [key.index for key in first.anchors] == [0, 5, 10, 15]
    assert [key.index for key in second.anchors] == [10, 15, 20, 35]


def test_a_question_that_holds_nothing_searches_for_nothing():
    """Both objects come back elsewhere, and neither the tracker nor a grounding finds them."""
    paths = {name: lambda time_s, name=name: SCENE[name](0) if time_s < 102 else None for name in "ab"}
    world = World(c=SCENE["c"], **paths)
    world.looks = dict(zip("abc", np.eye(3, dtype=np.float32)))
    run = _recorder(world=world)
    run.watch(range(16))
    run.ask("q1", "one")
    run.ask("q2", "other", policy="off")
    run.decaf.script = {"one": [], "other": []}
    run.watch(range(16, 90))
    assert run.results[-1].targets == () and run.decaf.asked.count("other") == 1
    for name, place in (("a", (12, 12)), ("b", (22, 12))):
        world.paths[f"{name}2"], world.looks[f"{name}2"] = (lambda time_s, place=place: place), world.looks[name]
    run.watch(range(90, 110))
    assert _meant(run) == {1: ("q1",)} and run.states() == {1: "TRACKED"}


def test_fresh_questions_come_first_by_priority_and_age():
    run = _recorder(lambda: None)
    for number, priority in enumerate([0, 1, 0, 1], start=1):
        run.ask(f"q{number}", ["one", "other", "both", "third"][number - 1], priority=priority)
    run.watch(range(16))
    assert run.decaf.asked == ["other", "third", "one", "both"]


def test_questions_that_are_always_due_take_turns():
    run = _recorder(regrounding__policy="refresh", regrounding__stride=1)
    run.watch(range(16))
    for query_id, text in (("q1", "one"), ("q2", "other"), ("q3", "third")):
        run.ask(query_id, text)
    run.watch(range(16, 90))
    asked = run.decaf.asked[3:]
    assert len(asked) > 20 and [asked.count(text) for text in ("one", "other", "third")] == [len(asked) / 3] * 3


@pytest.mark.parametrize("count", [0, 3])  # 0: they wait for key frames
def test_questions_that_are_asked_together_are_grounded_on_one_window(count):
    """Key frames arrive while the first ones are grounded."""
    number = itertools.count(16)
    run = _recorder(lambda: run.watch([next(number)]))
    if count:
        run.watch(range(16))
        run._is_between = True  # all are asked before the first unit
    for query_id, text in (("q1", "one"), ("q2", "other"), ("q3", "third")):
        run.ask(query_id, text)
    run._is_between = False
    run.watch([next(number)] if count else range(16))
    assert run.decaf.asked == ["one", "other", "third"]
    assert [[key.index for key in window.frames] for window in run.decaf.windows] == [[0, 5, 10, 15]] * 3
    assert run.online.buffer.newest.index > 25, "the stream has moved on"
    assert run.decaf.others[0] == ["other", "third"] and not run.decaf.others[-1], "the others of each unit"
    run.watch([next(number) for _ in range(3)])
    assert _meant(run) == {1: ("q1",), 2: ("q2",), 3: ("q3",)} and set(run.states().values()) == {"TRACKED"}


def test_questions_of_other_priorities_or_windows_are_not_asked_together():
    run = _recorder(between=lambda: None)
    run.watch(range(16))
    run._is_between = True  # all are asked before the first unit
    run.ask("q1", "one", priority=1)
    run.ask("q2", "other")
    run.watch(range(16, 21))
    run.ask("q3", "third", priority=1)
    run._is_between = False
    run.watch([21])
    assert run.decaf.asked == ["one", "third", "other"] and not any(run.decaf.others)
    assert [window.frames[-1].index for window in run.decaf.windows] == [15, 20, 15]


def test_a_question_does_not_wait_for_a_search():
    asked = iter(["q2"])
    run = _recorder(
        lambda: run.decaf.asked.count("one") == 2 and [run.online.ask(Query(one, "other")) for one in asked],
        regrounding__policy="refresh",
        regrounding__stride=1,
    )
    run.watch(range(16))
    run.ask("q1", "one")
    run.watch(range(16, 30))
    assert run.decaf.asked[:4] == ["one", "one", "other", "one"]
    assert run.answers("q2") == [QueryState.TRACKING] and run.answers("q1") == [QueryState.TRACKING]


def test_a_question_waits_for_one_that_is_grounded_again_after_a_restart():
    run = _recorder(lambda: run.decaf.asked == ["one", "one"] and "q2" not in run.online.queries and _ask_other(run))
    run.watch(range(16))
    run.ask("q1", "one")
    run.watch(range(18), start_s=50.0)
    assert run.decaf.asked == ["one", "one", "other"] and _meant(run) == {2: ("q1",), 3: ("q2",)}


def _ask_other(run: Recorder) -> None:
    run.online.ask(Query("q2", "other"))


def test_the_oldest_of_the_lowest_priority_gives_way_and_is_told():
    run = _recorder(queries__most=2)
    run.watch(range(16))
    run.ask("q1", "one", priority=1)
    run.ask("q2", "other")
    run.ask("q3", "third")
    assert _ids(run) == ["q1", "q3"]
    reason = "gave way: at most 2 queries at once (queries.most)"
    assert [event.text for event in run.of(QueryEvent) if event.state == QueryState.ENDED] == [reason]
    assert run.answers("q2") == [QueryState.TRACKING]
    run.watch(range(16, 20))
    assert _meant(run) == {1: ("q1",), 3: ("q3",)}
    run = _recorder(queries__most=2)
    for number in (1, 2, 3):
        run.ask(f"q{number}", "one", priority=-number)
    assert _ids(run) == ["q1", "q2"] and run.answers("q3") == [QueryState.SUPERSEDED]
    assert run.of(QueryEvent)[-1].text == reason


def test_an_empty_text_and_a_cancellation_without_an_id_end_all():
    for end in (lambda run: run.ask("q9", " "), lambda run: run.online.cancel()):
        run = _recorder()
        run.watch(range(16))
        run.ask("q1", "one")
        run.online.reset("another stream")
        run.ask("q2", "other")
        end(run)
        assert len(run.online.queries) == 0 and run.answers("q2") == [QueryState.CANCELLED]
        assert run.answers("q1") == [QueryState.TRACKING]
        run.watch(range(16, 50))
        assert run.results[-1].targets == () and run.results[-1].queries == ()
    assert run.online.cancel() == []


def test_when_a_running_grounding_is_cancelled_the_next_question_has_its_turn():
    run = _recorder(lambda: "q1" in run.online.queries and run.online.cancel("q1"))
    run.ask("q1", "one")
    run.ask("q2", "other")
    run.watch(range(16))
    assert run.answers("q1") == [QueryState.CANCELLED] and run.answers("q2") == [QueryState.TRACKING]
    assert run.decaf.asked == ["one", "other"]


def test_a_failed_grounding_ends_its_question_alone():
    run = _recorder(answers=ANSWERS | {"bad": RuntimeError("broken")})
    run.ask("q1", "bad")
    run.ask("q2", "one")
    run.watch(range(18))
    assert run.answers("q1") == [QueryState.FAILED] and run.answers("q2") == [QueryState.TRACKING]
    assert _ids(run) == ["q2"]


def test_a_stream_that_restarts_keeps_all_questions():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1", "one")
    run.ask("q2", "both")
    run.watch(range(18), start_s=50.0)
    assert run.decaf.asked == ["one", "both"] * 2 and _meant(run) == {3: ("q1", "q2"), 4: ("q2",)}
    assert run.answers("q1") == run.answers("q2") == [QueryState.TRACKING]


def test_a_question_in_mode_replace_ends_all():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1", "one")
    run.ask("q2", "other")
    run.decaf.config = settings()
    run.ask("q3", "third")
    run.watch(range(16, 18))
    assert _ids(run) == ["q3"] and _meant(run) == {3: ("q3",)}


def test_two_runs_give_the_same_results():
    def run() -> list:
        recorder = _recorder(regrounding__policy="refresh", regrounding__stride=2)
        recorder.ask("q1", "one")
        recorder.ask("q2", "both")
        recorder.watch(range(40))
        return [(result.frame.stamp_ns, result.labels.tobytes(), _targets(result)) for result in recorder.results]

    assert run() == run() and frame(39).stamp_ns == run()[-1][0]


def _targets(result) -> list:
    return [(target.id, target.label, target.query_ids, target.mask.tobytes()) for target in result.targets]
