"""Key frames that a query keeps: later groundings still see the event that the query is about."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from decaf_ros.types import Frame, Segmentation, Window


def choose_anchors(found: Segmentation, count: int) -> tuple[Frame, ...]:
    """At most `count` key frames in which an answer was found, in time order.

    First the source frames of the selected tracklets, best tracklet first, for at most half of the places; then the key
    frames with the strongest fused attention: those of the event.
    """
    frames = found.window.frames
    sources = list(dict.fromkeys(tracklet.source for tracklet in found.selected))[: max(count // 2, 1)]
    peaks = found.grounding.maps.fused.reshape(len(frames), -1).max(axis=1)
    by_attention = np.argsort(-peaks, kind="stable").tolist()
    chosen = list(dict.fromkeys([*sources, *by_attention]))[:count]
    return tuple(frames[index] for index in sorted(chosen))


def anchored(window: Window, anchors: Iterable[Frame], least: int) -> Window:
    """A window of the same length with the anchors that `window` lacks in place of its oldest key frames.

    At least the newest `least` key frames stay; if there are too many anchors, the oldest are left out. Anchors that do
    not come before the rest, or have another size, are left out.
    """
    own = window.frames
    extra = [frame for frame in dict.fromkeys(anchors) if frame not in own and frame.size_hw == window.size_hw]
    extra.sort(key=lambda frame: frame.stamp_ns)
    room = max(len(own) - least, 0)
    extra = extra[max(len(extra) - room, 0) :]
    newest = own[len(extra) :]
    return Window((*(frame for frame in extra if frame.stamp_ns < newest[0].stamp_ns), *newest))
