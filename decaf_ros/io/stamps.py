"""Times of frames whose header stamps do not tell the time: drivers that never set them, freeze them or jump.

Then the time of arrival takes their place: the recorded time in a bag, the node's clock on a live stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# Equal stamps in a row, while the arrival moves, that count as frozen. A driver may deliver one image twice.
FROZEN = 3
# Two steps back within this time of arrival are a clock that jumps. A looping bag steps back once per loop, and a short
# loop gives no window either.
RESTLESS_NS = 10_000_000_000
# A larger step back in a recording, while its time goes on, may be the camera's clock; a smaller one is a message that
# came late, and the stamps are sorted.
DISORDER_NS = 1_000_000_000
# A camera's times may differ so much from the recorded ones: buffers, a recorder that was busy.
GAP_NS = 500_000_000


class StreamStamps:
    """The stamps of one stream, frame by frame, without knowledge of the future.

    Uses the header's stamps until they prove useless; from then on the time of arrival, shifted so that time goes on
    where it was. Stamps that were never set are replaced without a shift.

    say: called once, when the arrival takes the place of the stamps.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._offset_ns: int | None = None
        self._header_ns = self._settled_ns = self._arrival_ns = 0
        self._equal, self._unset = 1, 0
        self._last_step_back_ns: int | None = None
        self._is_first = True

    def settled(self, header_ns: int, arrival_ns: int, jump_back_s: float = 0.2) -> int:
        """The stamp to use. jump_back_s: `window.jump_back_s`, the smallest step back that restarts a stream."""
        if self._offset_ns is None and (problem := self._problem(header_ns, arrival_ns, round(jump_back_s * 1e9))):
            self._offset_ns = self._settled_ns - self._arrival_ns
            self._say(f"{problem}: times of arrival are used instead")
        if self._offset_ns is not None:
            settled = arrival_ns + self._offset_ns
        else:
            settled = header_ns if header_ns > 0 else arrival_ns
        self._header_ns, self._arrival_ns, self._settled_ns = header_ns, arrival_ns, settled
        self._is_first = False
        return settled

    def _problem(self, header_ns: int, arrival_ns: int, jump_ns: int) -> str:
        """The reason why stamps cannot be used from this frame on, or ""."""
        if header_ns <= 0 and header_ns != arrival_ns:
            # A simulated clock may be zero once, at its start.
            self._unset += 1
            return f"image stamps are not set ({header_ns} ns)" if self._unset > 1 else ""
        if self._is_first:
            return ""
        if header_ns == self._header_ns:
            self._equal += arrival_ns > self._arrival_ns
        else:
            self._equal = 1
        if self._equal >= FROZEN:
            return f"image stamps do not move ({header_ns} ns for {self._equal} images)"
        step_ns = header_ns - self._header_ns
        if step_ns <= -max(jump_ns, 1) and arrival_ns >= self._arrival_ns:
            before, self._last_step_back_ns = self._last_step_back_ns, arrival_ns
            if before is not None and arrival_ns - before <= RESTLESS_NS:
                return f"image stamps jump back and forth (last by {step_ns / 1e9:.3f} s)"
        return ""


def settled_stamps(headers_ns: Sequence[int], recorded_ns: Sequence[int]) -> tuple[list[int], str]:
    """The stamps of a whole recording, in its order, and what was wrong with those of the headers ("" if nothing).

    They may be out of order: sort the frames by them. Those that are not set are replaced singly if some are, by the
    recorded time with the usual difference. If they freeze or jump, all are replaced by the recorded times.
    """
    headers, recorded = np.asarray(headers_ns, np.int64), np.asarray(recorded_ns, np.int64)
    unset = (headers <= 0) & (headers != recorded)
    if unset.all():
        return recorded.tolist(), f"the stamps of all {len(headers)} images are not set: the recorded times are used"
    header_steps, recorded_steps = np.diff(headers), np.diff(recorded)
    frozen = _longest_run((header_steps == 0) & (recorded_steps > 0) & ~unset[1:]) + 1
    if frozen >= FROZEN:
        text = f"the stamps of {frozen} images in a row do not move: the recorded times are used"
        return recorded.tolist(), text
    good = np.flatnonzero(~unset)
    steps_back = (np.diff(headers[good]) < -DISORDER_NS) & (np.diff(recorded[good]) >= 0)
    if steps_back.any() and _is_other_time(headers[good], recorded[good]):
        text = f"the stamps jump back {steps_back.sum()} times by more than a second: the recorded times are used"
        return recorded.tolist(), text
    if unset.any():
        delay_ns = int(np.median(headers[good] - recorded[good]))
        filled = np.where(unset, recorded + delay_ns, headers)
        return filled.tolist(), f"the stamps of {unset.sum()} images are not set: the recorded times are used for them"
    return headers.tolist(), ""


def _is_other_time(headers: np.ndarray, recorded: np.ndarray) -> bool:
    """Whether stamps are no possible order of the recorded images, however late these came: a clock that jumps makes
    the whole longer or shorter, leaves a gap, or puts images between those of another time.

    Both in the order of recording.
    """
    if recorded.min() == recorded.max():
        return False
    in_order = np.sort(headers)
    longer = abs(np.ptp(headers) - np.ptp(recorded))
    gap = np.diff(in_order).max() - np.diff(np.sort(recorded)).max()
    if max(longer, gap) > GAP_NS:
        return True
    usual = np.median(np.diff(in_order))

    def crowded(steps: np.ndarray) -> int:
        return int(np.count_nonzero((steps >= 0) & (steps < 0.75 * usual)))

    # A late image hides at most three steps.
    hidden = 3 * np.count_nonzero(np.diff(headers) < 0)
    return bool(crowded(np.diff(in_order)) > crowded(np.diff(headers)) + hidden)


def _longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
