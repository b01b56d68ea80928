"""The bounded past of one camera stream: the last frames, and the key frames that a query looks back over."""

from __future__ import annotations

from collections import deque

from decaf_ros.config import WindowConfig
from decaf_ros.types import Frame, Window

_MIB = 2**20


class FrameBuffer:
    """The last frames of one stream, oldest first, and its last key frames.

    Bounded by `window.buffer_frames` and `window.buffer_mib`; the oldest frames go first and the newest one always
    stays. Besides these, the last `window.size` key frames stay, also after they have left the buffer.

    The key-frame clock runs on stamps: a tick every `window.keyframe_period_s`, and the first frame at or after a tick
    becomes a key frame. Ticks keep their phase, so that camera jitter does not add up; after a gap of a period or more
    they start anew at the first frame. A frame whose stamp is not later than the last one's is never a key frame.
    """

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._keyframes: deque[Frame] = deque()
        self._nbytes = 0
        self._tick_ns: int | None = None

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def nbytes(self) -> int:
        """Pixels of the buffered frames; key frames that have left the buffer are not counted."""
        return self._nbytes

    @property
    def newest(self) -> Frame | None:
        return self._frames[-1] if self._frames else None

    @property
    def keyframe_count(self) -> int:
        return len(self._keyframes)

    def break_before(self, frame: Frame, config: WindowConfig) -> str:
        """Why `frame` cannot continue this stream: another image size, or a stamp that jumps back. Empty if it can.

        Less than `window.jump_back_s` is no jump: some drivers deliver frames out of order now and then.
        """
        newest = self.newest
        if newest is None:
            return ""
        if frame.size_hw != newest.size_hw:
            (old_h, old_w), (new_h, new_w) = newest.size_hw, frame.size_hw
            return f"the image size changed from {old_w}x{old_h} to {new_w}x{new_h}"
        back_s = (newest.stamp_ns - frame.stamp_ns) / 1e9
        if back_s > 0 and back_s >= config.jump_back_s:
            return f"the stamp jumped back by {back_s:.3f} s"
        return ""

    def push(self, frame: Frame, config: WindowConfig) -> bool:
        """Adds the newest frame; whether it became a key frame. Raises ValueError where `break_before` has a reason."""
        if reason := self.break_before(frame, config):
            raise ValueError(f"FrameBuffer.push: expected the next frame of one stream, but {reason}")
        is_keyframe = self._ticks(frame, config)
        if is_keyframe:
            self._keyframes.append(frame)
            while len(self._keyframes) > config.size:
                self._keyframes.popleft()
        self._frames.append(frame)
        self._nbytes += frame.image.nbytes
        while len(self._frames) > 1 and (
            len(self._frames) > config.buffer_frames or self._nbytes > config.buffer_mib * _MIB
        ):
            self._nbytes -= self._frames.popleft().image.nbytes
        return is_keyframe

    def _ticks(self, frame: Frame, config: WindowConfig) -> bool:
        period_ns = round(config.keyframe_period_s * 1e9)
        if self._tick_ns is None:
            self._tick_ns = frame.stamp_ns
            return True
        due_ns = self._tick_ns + period_ns
        if frame.stamp_ns < due_ns or frame.stamp_ns <= self._keyframes[-1].stamp_ns:
            return False
        late = frame.stamp_ns - due_ns >= period_ns
        self._tick_ns = frame.stamp_ns if late else due_ns
        return True

    def window(self) -> Window:
        """The last key frames; the last of them is the window's end, frames after it do not join.

        Raises ValueError while there is no key frame.
        """
        return Window(tuple(self._keyframes))

    def after(self, frame: Frame) -> list[Frame]:
        """Buffered frames that arrived after `frame`, oldest first; all of them if `frame` has left the buffer."""
        frames = list(self._frames)
        position = next((place for place, kept in enumerate(frames) if kept is frame), -1)
        return frames[position + 1 :]

    def clear(self) -> None:
        """Forgets the stream, as if no frame had come."""
        self.__init__()
