"""The targets of a stream's queries: ids, labels, states, and their re-identification by a new grounding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from decaf_ros.config import DecafConfig, TrackingConfig
from decaf_ros.online.appearance import MARGIN_OFF
from decaf_ros.online.camera import image_shift, shifted
from decaf_ros.online.duplicates import DuplicateDetector, group_by_object, were_apart
from decaf_ros.online.tracks import Candidate, LivingTarget, is_seen
from decaf_ros.segmentation.overlap import are_apart, assign, mask_iou
from decaf_ros.segmentation.tracker import StreamingTracker, TrackStep
from decaf_ros.types import Frame, FrameResult, Query, Target, TargetState

_LABELS = range(1, 256)
# Missing targets that are still looked for, the newest ones: each costs a tracker step per frame.
_MAX_MISSING = 16
_HIDDEN = TrackStep(np.zeros((0, 0), bool), -1.0)


class Targets:
    """All targets of the present queries. An object that several queries mean is one target.

    A lost target keeps its label until its loss is published. Then it is missing: the tracker and later groundings
    still look for it, and it keeps its id when it is found.

    ids: supply of ids for new targets. By default counts from 1 over all queries.
    """

    def __init__(self, ids: Iterator[int] | None = None) -> None:
        self._targets: list[LivingTarget] = []
        self._missing: list[LivingTarget] = []
        self._duplicates = DuplicateDetector()
        self._frame: Frame | None = None
        self._ids = itertools.count(1) if ids is None else ids

    @property
    def living(self) -> list[LivingTarget]:
        return [target for target in self._targets if target.state is not TargetState.LOST]

    @property
    def missing(self) -> list[LivingTarget]:
        """Lost targets that are searched for."""
        return list(self._missing)

    def update(
        self, frame: Frame, steps: Mapping[int, TrackStep], config: DecafConfig, is_keyframe: bool = False
    ) -> list[int]:
        """Applies the tracker's results (by key) on the next frame.

        Returns the keys of the targets that were not surely seen on it, which the tracker must not learn from. If two
        targets turn out to be one object, one is lost (`DuplicateDetector.update`) and the other belongs to the queries
        of both, unless the policy of all queries of one is off.
        """
        shift = image_shift(self._frame, frame) if steps and self._frame is not None else np.zeros(2)
        for target in (*self.living, *self._missing):
            target.appearance.follow_camera(shift)
            if target.key in steps:
                target.claim = steps[target.key].mask
        steps = {**steps, **{target.key: _HIDDEN for target in self._intruders(frame, steps, shift, config.tracking)}}
        self._frame = frame
        for target in self.living:
            target.update(frame, steps[target.key], config.tracking, is_keyframe)
        for target in [target for target in self._missing if target.key in steps]:
            if self._has_room(config) and target.reappears(frame, steps[target.key], config.tracking):
                self._return_to_view(target)
        rejected = [
            target.key
            for target in (*self.living, *self._missing)
            if target.key in steps and target.sure_frame is not frame
        ]
        policy = config.regrounding.policy
        visible = [target for target in self.living if target.seen_frame is frame and target.is_held(policy)]
        for target, kept in self._duplicates.update(visible, config.segmentation.suppression_iou):
            target.state, target.is_given_up = TargetState.LOST, True
            for query, category in target.queries.items():
                kept.queries.setdefault(query, category)
        return rejected

    def _intruders(
        self, frame: Frame, steps: Mapping[int, TrackStep], shift: np.ndarray, config: TrackingConfig
    ) -> list[LivingTarget]:
        """Targets whose new masks lie on a different target that has the better claim to the place: it was seen on the
        frame before, and its mask is where it was, up to the image's shift. SAM 2 went over to it from an object of the
        same looks."""
        if len(steps) < 2:
            return []
        claims = []
        for target in (*self.living, *self._missing):
            step, looks = steps.get(target.key), target.appearance
            if step is None or not is_seen(step, config) or looks.contradicts(frame, step.mask, step.look, config):
                continue
            was_seen = target.state is not TargetState.LOST and target.seen_frame is self._frame
            fit = mask_iou(step.mask, shifted(target.mask, shift)) if was_seen else looks.similarity(step.look) or 0.0
            claims.append((was_seen, fit, -target.id, target, step.mask))
        claims.sort(key=lambda claim: claim[:3], reverse=True)
        kept: list[tuple[LivingTarget, np.ndarray]] = []
        intruders = []
        for *_, target, mask in claims:
            if any(self._duplicates.are_distinct(target.id, one.id) and not are_apart(mask, its) for one, its in kept):
                intruders.append(target)
            else:
                kept.append((target, mask))
        return intruders

    def unsure(self, frame: Frame, search_after_s: float) -> list[LivingTarget]:
        """Living and missing targets that were not surely seen for at least `search_after_s` at `frame`."""
        return [target for target in (*self.living, *self._missing) if target.unsure_s(frame) >= search_after_s]

    def search(self, frame: Frame, tracker: StreamingTracker, keys: Iterator[int], config: DecafConfig) -> None:
        """Looks on a key frame for the targets that `tracker` does not surely see, by what they look like, unless the
        policy of all their queries is off.

        SAM 2 may miss an object that comes back elsewhere, and a new grounding of an old question may mean another.

        keys: supply of keys of `tracker`, which follows what was found.
        """
        if config.tracking.appearance_margin >= MARGIN_OFF:
            return
        found = []
        for target in self.unsure(frame, config.regrounding.search_after_s):
            example = target.appearance.example
            if example is None or not target.is_held(config.regrounding.policy):
                continue
            masks, looks, logits = tracker.search(frame, example)
            least, most = config.regrounding.match_iou, config.segmentation.suppression_iou
            is_here = np.array([mask_iou(mask, target.mask) > least for mask in masks], bool)
            free = np.array([self._is_free(target, frame, mask) for mask in masks], bool)
            if target.seen_frame is frame:  # it is not elsewhere
                free &= is_here
            places = np.flatnonzero(free)
            masks, looks, is_here = masks[free], looks[free], is_here[free]
            in_place = np.flatnonzero(is_here & target.appearance.is_recent(frame)).tolist()
            followed = [index for index, mask in enumerate(masks) if mask_iou(mask, target.claim) > most]
            chosen = target.appearance.choose(masks, looks, config.tracking, in_place, followed)
            if chosen is not None:
                step = TrackStep(masks[chosen], 1.0, looks[chosen], logits=logits[places[chosen]])
                found.append((target, step))
        # One mask may fit two targets of the same looks: it belongs to the more similar one.
        for target, step in sorted(found, key=lambda pair: -(pair[0].appearance.similarity(pair[1].look) or 0.0)):
            if self.find(target, key := next(keys), frame, step, config):
                tracker.add([key], frame, step.mask[None])

    def find(self, target: LivingTarget, key: int, frame: Frame, step: TrackStep, config: DecafConfig) -> bool:
        """An unsure target was found on `frame`, the last followed one, by what it looks like; `key` follows it from
        there. Returns False if there is no room for it, or if another target is there."""
        if not self._is_free(target, frame, step.mask):
            return False
        if target in self._missing:
            if not self._has_room(config):
                return False
            self._return_to_view(target)
        target.find(key, frame, step, config.tracking)
        self._duplicates.restart(target.id)
        return True

    def _is_free(self, target: LivingTarget, frame: Frame, mask: np.ndarray) -> bool:
        """Whether a (H, W) bool mask on the last followed frame is empty or apart from all other targets there."""
        others = [other for other in self.living if other is not target and other.seen_frame is frame]
        return not mask.any() or all(are_apart(mask, other.mask) for other in others)

    def lose_all(self) -> None:
        """Loses all living targets, for example because tracking failed."""
        for target in self._targets:
            target.state = TargetState.LOST

    def forget_missing(self) -> None:
        """Stops searching for lost targets, including those whose loss is not published yet."""
        self._missing = []
        for target in self._targets:
            target.is_given_up = target.is_given_up or target.state is TargetState.LOST

    def drop(self, query: Query) -> None:
        """A query has ended: forgets the targets that no other query means, without publishing their loss."""
        for target in (*self._targets, *self._missing):
            target.queries.pop(query, None)
        self._targets = [target for target in self._targets if target.queries]
        self._missing = [target for target in self._missing if target.queries]

    def living_of(self, query: Query) -> list[LivingTarget]:
        return [target for target in self.living if query in target.queries]

    def sought(self, frame: Frame, search_after_s: float, query: Query) -> frozenset[int]:
        """Ids of a query's targets that are missing, or hidden for at least `search_after_s` at `frame`."""
        hidden = (
            target
            for target in self.living
            if target.seen_frame is not frame and target.unseen_s(frame) >= search_after_s
        )
        lost = (target for target in (*self._targets, *self._missing) if target.is_missing)
        return frozenset(target.id for target in (*hidden, *lost) if query in target.queries)

    def evidence(self, frame: Frame) -> dict[int, tuple[int, bool]]:
        """For each living target by id: the key of its memory in the tracker, and whether it is surely seen on `frame`,
        the last followed one."""
        return {target.id: (target.key, target.sure_frame is frame) for target in self.living}

    def logits(self, frame: Frame) -> dict[int, torch.Tensor]:
        """(h, w) float32 by id, on the mask grid, of each living target that is seen on `frame`, the last followed
        one."""
        seen = (target for target in self.living if target.seen_frame is frame)
        return {target.id: target.logits for target in seen if target.logits is not None}

    @property
    def key_masks(self) -> list[tuple[LivingTarget, Frame, np.ndarray]]:
        """Living targets, each with the last key frame on which it was surely seen, and its mask there."""
        known = ((target, target.key_frame, target.key_mask) for target in self.living)
        return [(target, frame, mask) for target, frame, mask in known if frame is not None and mask is not None]

    @property
    def tracker_keys(self) -> set[int]:
        """Keys of the objects that the tracker has to follow: living and missing targets."""
        return {target.key for target in (*self._targets, *self._missing) if not target.is_given_up}

    def last_key_frames(self, query: Query) -> list[Frame]:
        """The last key frame of each living or missing target of a query on which it was seen."""
        own = [target for target in (*self.living, *self._missing) if query in target.queries]
        return [target.key_frame for target in own if target.key_frame is not None]

    def merge(
        self,
        candidates: Sequence[Candidate],
        query: Query,
        category: str,
        newest: Frame,
        config: DecafConfig,
        may_join: bool = True,
        means_one: bool = False,
    ) -> set[int]:
        """Merges the candidates of one grounding of `query`, best first, caught up to `newest`. Returns the ids of the
        targets that it found again: they go on with a candidate that is seen now.

        Each candidate is matched with at most one living or missing target. A target that is surely seen stays as it
        is. Any other continues with the candidate's memory, a visible one only in its place; a missing one is then
        revived with its id. If the candidate is doubtful by its looks, that holds only where both have the same mask
        now: then the target's looks were inexact. A hidden target of the query without a match counts a miss. With
        `may_join`, a living target of another query that has a match belongs to this query too, and candidates without
        a match become new targets, at most `tracking.max_targets` of all queries; if the query `means_one` object, the
        best candidate alone, where the query has no target. Without it, targets of other queries stay as they are.
        Other candidates on the same object (`group_by_object`) only help to match it.

        config: with the query's policy.
        """
        self._frame = newest  # where new targets are: nothing may have been followed for long before
        groups = [[candidate] for candidate in candidates]
        if config.regrounding.policy != "off":
            groups = group_by_object(candidates, config.segmentation.suppression_iou)
        candidates = [group[0] for group in groups]
        known = [*self.living, *self._missing]
        overlaps = _overlaps(known, groups, config.tracking)
        # First those that are surely seen now: one that SAM 2 has lost on the way would lose the target.
        is_sure = np.array([candidate.sure_frame is newest for candidate in candidates], bool)
        matches = dict(assign(overlaps * is_sure, config.regrounding.match_iou))
        overlaps[list(matches)] = overlaps[:, list(matches.values())] = 0
        matches.update(assign(overlaps, config.regrounding.match_iou))
        sources: dict[int, Candidate] = {}
        # Candidates that may become targets of the query, and those that are now.
        has_any = any(query in target.queries for target in known)
        joining = range(len(candidates) if may_join else 0)
        if means_one:
            joining = joining[: int(not has_any)]
        taken, again = set(), set()
        for row, target in enumerate(known):
            is_own, column = query in target.queries, matches.get(row)
            if column is None:
                if is_own and target not in self._missing and target.seen_frame is not newest:
                    target.miss(config.regrounding)
                continue
            candidate = sources[target.id] = candidates[column]
            if not is_own and column not in joining:
                continue
            if target.sure_frame is not newest and self._continue(target, candidate, newest, config):
                again.add(target.id)
            if is_own or target not in self._missing or target.key == candidate.key:
                taken.add(column)
                target.queries.setdefault(query, category)
        unmatched = [candidates[column] for column in joining if column not in taken]
        free_places = max(config.tracking.max_targets - len(self.living), 0)
        for label, candidate in zip(self._free_labels()[:free_places], unmatched):
            target = LivingTarget.start(next(self._ids), label, query, category, candidate, newest)
            # Compare now: for a hidden target, later frames may give no evidence.
            for other in self.living:
                if (masks := _comparable_masks(other, candidate)) and are_apart(*masks):
                    self._duplicates.mark_distinct(other.id, target.id)
            sources[target.id] = candidate
            self._targets.append(target)
        for (first_id, first), (second_id, second) in itertools.combinations(sources.items(), 2):
            if were_apart(first, second):
                self._duplicates.mark_distinct(first_id, second_id)
        return again

    def _continue(self, target: LivingTarget, candidate: Candidate, newest: Frame, config: DecafConfig) -> bool:
        """Continues a target that is not surely seen with its match, where that has the better evidence. Returns
        whether it does, and sees the target now."""
        target.misses = 0
        if target.seen_frame is newest and not _is_here(target, candidate, config):
            return False
        if target.appearance.is_doubtful(candidate.look, config.tracking):
            if not _agree(target, candidate, newest, config.segmentation.suppression_iou):
                return False
            target.learn_anew(candidate)
        elif target not in self._missing:
            target.renew(candidate)
        elif candidate.seen_frame is newest and self._has_room(config):
            self._return_to_view(target)
            target.revive(candidate, newest)
        else:
            return False
        self._duplicates.restart(target.id)
        return candidate.seen_frame is newest

    def _return_to_view(self, target: LivingTarget) -> None:
        """A missing target lives again, under its old label if that is free."""
        labels = self._free_labels()
        target.label = target.label if target.label in labels else labels[0]
        self._missing.remove(target)
        self._targets.append(target)

    def _has_room(self, config: DecafConfig) -> bool:
        return len(self.living) < config.tracking.max_targets and bool(self._free_labels())

    def _free_labels(self) -> list[int]:
        used = {target.label for target in self._targets}
        return [label for label in _LABELS if label not in used]

    def publish(self, frame: Frame, queries: Sequence[Query]) -> FrameResult:
        """The result for `frame`, after `update` on it. A lost target appears in one result only.

        queries: the tracked ones.
        """
        targets = tuple(target.on(frame) for target in self._targets)
        labels = label_image(frame.size_hw, targets)
        self._missing = [*self._missing, *(target for target in self._targets if target.is_missing)][-_MAX_MISSING:]
        self._targets = self.living
        self._duplicates.retain({target.id for target in (*self._targets, *self._missing)})
        return FrameResult(frame, labels, tuple(queries), targets)


def label_image(size_hw: tuple[int, int], targets: Sequence[Target]) -> np.ndarray:
    """(H, W) uint8: 0 background, k the target with label k. Where masks overlap, the higher combined score wins."""
    labels = np.zeros(size_hw, np.uint8)
    for target in sorted(targets, key=lambda target: (target.scores.combined, -target.id)):
        labels[target.mask] = target.label
    return labels


def _overlaps(
    living: Sequence[LivingTarget], groups: Sequence[Sequence[Candidate]], config: TrackingConfig
) -> np.ndarray:
    """(targets, groups) float64 mask IoU, the maximum over a group; 0 if its best candidate looks different from the
    target, or is too large. Without a frame for the comparison: the similarity of a candidate that clearly looks like
    the target."""
    overlaps = np.zeros((len(living), len(groups)))
    for row, target in enumerate(living):
        for column, group in enumerate(groups):
            looks, area_px = target.appearance, float(np.count_nonzero(group[0].seen_mask))
            may_be_nearer = target.is_missing and looks.looks_alike(group[0].look, config)
            if looks.looks_different(group[0].look, config) or looks.is_too_large(area_px, may_be_nearer):
                continue
            mask_pairs = [masks for masks in (_comparable_masks(target, candidate) for candidate in group) if masks]
            overlaps[row, column] = max((mask_iou(*masks) for masks in mask_pairs), default=0.0)
            if not mask_pairs and target.appearance.looks_alike(group[0].look, config):
                overlaps[row, column] = target.appearance.similarity(group[0].look) or 0.0
    return overlaps


def _is_here(target: LivingTarget, candidate: Candidate, config: DecafConfig) -> bool:
    """Whether a candidate of a grounding is seen on the newest frame, where the visible target is."""
    is_seen_now = candidate.seen_frame is target.seen_frame
    return is_seen_now and mask_iou(target.mask, candidate.seen_mask) > config.regrounding.match_iou


def _agree(target: LivingTarget, candidate: Candidate, newest: Frame, iou_threshold: float) -> bool:
    """Whether a visible target and a surely seen candidate of a grounding have the same mask on the newest frame."""
    both_seen = target.seen_frame is newest and candidate.sure_frame is newest
    return both_seen and mask_iou(target.mask, candidate.seen_mask) > iou_threshold


def _comparable_masks(target: LivingTarget, candidate: Candidate) -> tuple[np.ndarray, np.ndarray] | None:
    """Masks of both on the frame on which the target was last surely seen, or on the last such key frame if the
    candidate has no mask there; None without either."""
    for frame, mask in ((target.sure_frame, target.sure_mask), (target.key_frame, target.key_mask)):
        if frame is not None and mask is not None and frame in candidate.masks:
            return mask, candidate.masks[frame]
    return None
