"""Bounded buffer of one camera stream: the last frames, and the key frames for the next grounding."""

from __future__ import annotations

from collections import deque

from decaf_ros.config import WindowConfig
from decaf_ros.types import Frame, Window

_MIB = 2**20


class FrameBuffer:
    """The last frames of one stream, oldest first, and its last key frames.

    Bounded by `window.buffer_frames` and `window.buffer_mib`. The oldest frames are dropped first; the newest always
    stays. The last `window.size` key frames stay even after they have left the buffer, and count against its bytes. If
    key frames alone are too many bytes, the oldest of them are dropped too, down to `window.min_frames`.

    The key-frame clock uses stamps. It ticks every `window.keyframe_period_s`; the first frame at or after a tick is a
    key frame. Ticks keep their phase, so camera jitter does not accumulate; a frame late by a period or more restarts
    them. A frame whose stamp is not later than the last key frame's is never a key frame.
    """

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._keyframes: deque[Frame] = deque()
        self._buffered: set[Frame] = set()  # by identity
        self._nbytes = 0
        self._tick_ns: int | None = None

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def nbytes(self) -> int:
        """Image bytes of the buffered frames, without key frames that have left the buffer."""
        return self._nbytes

    @property
    def newest(self) -> Frame | None:
        return self._frames[-1] if self._frames else None

    @property
    def keyframe_count(self) -> int:
        return len(self._keyframes)

    def break_before(self, frame: Frame, config: WindowConfig) -> str:
        """The reason why `frame` cannot continue this stream (image size changed, or stamp jumped back), else "".

        Steps back of less than `window.jump_back_s` are allowed: some drivers deliver frames out of order.
        """
        newest = self.newest
        if newest is None:
            return ""
        if frame.camera_hw != newest.camera_hw:
            (old_h, old_w), (new_h, new_w) = newest.camera_hw, frame.camera_hw
            return f"the image size changed from {old_w}x{old_h} to {new_w}x{new_h}"
        back_s = (newest.stamp_ns - frame.stamp_ns) / 1e9
        if back_s > 0 and back_s >= config.jump_back_s:
            return f"the stamp jumped back by {back_s:.3f} s"
        return ""

    def push(self, frame: Frame, config: WindowConfig) -> bool:
        """Adds a frame; returns whether it is a key frame. Raises ValueError if `break_before` gives a reason."""
        if reason := self.break_before(frame, config):
            raise ValueError(f"FrameBuffer.push: expected the next frame of one stream, but {reason}")
        is_keyframe = self._advance_clock(frame, config)
        if is_keyframe:
            self._keyframes.append(frame)
            while len(self._keyframes) > config.size:
                self._keyframes.popleft()
        self._frames.append(frame)
        self._nbytes += frame.image.nbytes
        self._buffered.add(frame)
        limit = config.buffer_mib * _MIB
        while len(self._keyframes) > max(1, config.min_frames) and self._key_nbytes > limit:
            self._keyframes.popleft()
        while len(self._frames) > 1 and (len(self._frames) > config.buffer_frames or self._held_nbytes > limit):
            oldest = self._frames.popleft()
            self._buffered.remove(oldest)
            self._nbytes -= oldest.image.nbytes
        return is_keyframe

    @property
    def _key_nbytes(self) -> int:
        """Image bytes of the key frames."""
        return sum(key.image.nbytes for key in self._keyframes)

    @property
    def _held_nbytes(self) -> int:
        """Image bytes of all frames."""
        return self._nbytes + sum(key.image.nbytes for key in self._keyframes if key not in self._buffered)

    def _advance_clock(self, frame: Frame, config: WindowConfig) -> bool:
        """Whether `frame` is a key frame."""
        period_ns = round(config.keyframe_period_s * 1e9)
        if self._tick_ns is None:
            self._tick_ns = frame.stamp_ns
            return True
        due_ns = self._tick_ns + period_ns
        if frame.stamp_ns < due_ns or frame.stamp_ns <= self._keyframes[-1].stamp_ns:
            return False
        missed_tick = frame.stamp_ns - due_ns >= period_ns
        self._tick_ns = frame.stamp_ns if missed_tick else due_ns
        return True

    def window(self) -> Window:
        """The last key frames. Raises ValueError without a key frame."""
        return Window(tuple(self._keyframes))

    def after(self, frame: Frame) -> list[Frame]:
        """Buffered frames that arrived after `frame`, oldest first; all if `frame` has left the buffer."""
        frames = list(self._frames)
        index = next((index for index, buffered in enumerate(frames) if buffered is frame), -1)
        return frames[index + 1 :]

    def clear(self) -> None:
        """Forgets the stream."""
        self._frames.clear()
        self._buffered.clear()
        self._keyframes.clear()
        self._nbytes = 0
        self._tick_ns = None
