"""Makes what the next question will need of the window before it is asked."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence

import torch

from decaf_ros.config import DecafConfig
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Frame, Window

_log = logging.getLogger(__name__)
_CPU_SHARE, _GPU_SHARE = 0.25, 0.5
# After preparing ran out of memory.
_PAUSE_S = 60.0


class Ahead:
    """Prepares the windows of all streams, one after the other, within `engine.ahead_share` of the time.

    A window is finished before the next stream's begins. One that moves on before it is finished leaves the turn to the
    next stream, as soon as the work in hand is complete or of no use for the new window: what is complete stays cached.
    After memory ran out, nothing is prepared for a minute.

    clock: seconds.
    """

    def __init__(self, decaf: Decaf, clock: Callable[[], float] = time.monotonic) -> None:
        self._decaf = decaf
        self._clock = clock
        # By the place of the stream: the last window that was begun.
        self._begun: dict[int, Window] = {}
        self._place = 0
        self._task: Generator[tuple[Frame, ...], None, None] | None = None
        # The key frames for which the unfinished work of the task is useful, whatever the window.
        self._in_hand: tuple[Frame, ...] = ()
        self._resume_s = -math.inf
        self._since_s = self._spent_s = 0.0

    def stop(self) -> None:
        """Abandons the preparation. What is complete stays cached."""
        self._close()
        self._begun.clear()

    def advance(self, windows: Sequence[Window | None], config: DecafConfig) -> bool:
        """Runs the next unit if one is left and its time has come. Returns whether it ran one.

        windows: of each stream; None for one without key frames.
        """
        share = self._share(config)
        if share == 0 or self._clock() < self._resume_s:
            return False
        if self._is_new(self._place, windows) and not self._is_useful(windows[self._place]):
            self._close()
        if self._task is None and not self._begin_next(windows, config, share):
            return False
        assert self._task is not None
        started_s = self._clock()
        if self._spent_s > share * (started_s - self._since_s):
            return False
        out_of_memory = False
        try:
            self._in_hand = next(self._task)
        except StopIteration:
            self._task = None
        except Exception as error:  # a question will meet it again, and report it
            _log.warning("preparation of a window failed: %s", str(error))
            self._task, out_of_memory = None, isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # after the except block: its error references the tensors of the failed work
            self._decaf.release()
            self._resume_s = self._clock() + _PAUSE_S
        self._spent_s += self._clock() - started_s
        return True

    def _is_new(self, place: int, windows: Sequence[Window | None]) -> bool:
        """Whether the stream's window is not the one that was begun last."""
        window, begun = windows[place], self._begun.get(place)
        return (window and window.frames) != (begun and begun.frames)

    def _is_useful(self, window: Window | None) -> bool:
        """Whether the work in hand is useful for this window."""
        if self._task is None or window is None:
            return False
        return bool(self._in_hand) and set(self._in_hand) <= set(window.frames)

    def _begin_next(self, windows: Sequence[Window | None], config: DecafConfig, share: float) -> bool:
        """Begins the next window that was not begun yet, if there is one. A share that is used up stays so."""
        for place in (*range(self._place + 1, len(windows)), *range(self._place + 1)):
            window = windows[place]
            if window is None or not self._is_new(place, windows):
                continue
            others = [one for one in windows if one is not None and one is not window]
            self._task = self._decaf.prepare(window, others)
            self._place, self._begun[place] = place, window
            self._since_s, self._spent_s = max(self._clock(), self._since_s + self._spent_s / share), 0.0
            return True
        return False

    def _close(self) -> None:
        if self._task is not None:
            self._task.close()
        self._task, self._in_hand = None, ()

    def _share(self, config: DecafConfig) -> float:
        share = config.engine.ahead_share
        if share >= 0:
            return share
        return _CPU_SHARE if self._decaf.grounder.mllm.model.device.type == "cpu" else _GPU_SHARE
