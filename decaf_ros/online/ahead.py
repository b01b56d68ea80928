"""Makes what the next question will need of the window before it is asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from decaf_ros.config import DecafConfig
from decaf_ros.pipeline import Decaf
from decaf_ros.stages import Steps
from decaf_ros.types import Window

_log = logging.getLogger(__name__)
_CPU_SHARE, _GPU_SHARE = 0.25, 0.5


class Ahead:
    """Prepares windows, one after the other, within `engine.ahead_share` of the time.

    clock: seconds.
    """

    def __init__(self, decaf: Decaf, clock: Callable[[], float] = time.monotonic) -> None:
        self._decaf = decaf
        self._clock = clock
        self._window: Window | None = None
        self._task: Steps[None] | None = None
        self._since_s = self._spent_s = 0.0

    def stop(self) -> None:
        """Abandons the preparation. What is complete stays cached."""
        if self._task is not None:
            self._task.close()
        self._task = self._window = None

    def advance(self, window: Window, config: DecafConfig) -> bool:
        """Runs the next unit for this window if one is left and its time has come. Returns whether it ran one."""
        if self._window is None or self._window.frames != window.frames:
            self.stop()
            self._window, self._task = window, self._decaf.grounder.prepare(window, config)
            self._since_s, self._spent_s = self._clock(), 0.0
        started_s, share = self._clock(), self._share(config)
        if self._task is None or share == 0 or self._spent_s > share * (started_s - self._since_s):
            return False
        out_of_memory = False
        try:
            next(self._task)
        except StopIteration:
            self._task = None
        except Exception as error:  # a question will meet it again, and report it
            _log.warning("preparation of a window failed: %s", str(error))
            self._task, out_of_memory = None, isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # after the except block: its error references the tensors of the failed work
            self._decaf.release()
        self._spent_s += self._clock() - started_s
        return True

    def _share(self, config: DecafConfig) -> float:
        share = config.engine.ahead_share
        if share >= 0:
            return share
        return _CPU_SHARE if self._decaf.grounder.mllm.model.device.type == "cpu" else _GPU_SHARE
