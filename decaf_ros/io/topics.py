"""Which image topic of a bag is the camera's: a colour image if there is one, a grey one else, and never a mask, a
depth image or a picture that somebody has drawn on, unless it is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.io.images import GREY_ENCODINGS, message_to_rgb, source_encoding

COLOUR, GREY, DRAWN, MASK, DEPTH, UNREADABLE = "colour", "grey", "drawn", "mask", "depth", "unreadable"
_ORDER = (COLOUR, GREY, DRAWN, MASK, DEPTH, UNREADABLE)
# Words in the names of topics.
_WORDS = {
    DEPTH: r"depth|disparity|heat_?maps?",
    MASK: r"masks?|labels?|label_?map|semantics?|seg|segment\w*|instances?|panoptic",
    DRAWN: r"overlays?|debug|annotated|annotations?|visuali[sz]\w*|viz|rviz",
}
_DEPTH_ENCODINGS = re.compile(r"(16|32)[usf]c1|64fc1")
# A picture of a camera has more grey levels than a label image of a few objects.
_FEW_LEVELS = 16
# A larger image is not decoded to tell what it shows.
_MOST_MPX = 100.0
_TRANSPORT = "/compressed"


class ImageTopic(NamedTuple):
    """An image topic. kind: COLOUR, GREY, DRAWN, MASK, DEPTH or UNREADABLE."""

    name: str
    msgtype: str
    message_count: int
    kind: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.msgtype}, {self.message_count} messages)"


def kind_of_image(name: str, message: Any) -> str:
    """The kind of a topic by its name and one message (an Image or CompressedImage)."""
    encoding = source_encoding(message)
    if _DEPTH_ENCODINGS.fullmatch(encoding) or "compressedDepth" in getattr(message, "format", ""):
        return DEPTH
    try:
        image = message_to_rgb(message, max_mpx=_MOST_MPX)
    except ValueError:
        return UNREADABLE
    for kind, words in _WORDS.items():
        # As a whole word, so that an "unmasked" picture is none.
        if re.search(rf"(?<![a-z])({words})(?![a-z])", name.lower()):
            return kind
    # Colour-coded label images have the encoding of a picture, but few colours and hard edges: only the name tells.
    if encoding in GREY_ENCODINGS or (not encoding and bool((image[..., 0] == image[..., 1]).all())):
        return MASK if len(np.unique(image[..., 0])) <= _FEW_LEVELS else GREY
    return COLOUR


def ranked(topics: Sequence[ImageTopic]) -> list[ImageTopic]:
    """The likely cameras first."""
    return sorted(topics, key=lambda topic: (_ORDER.index(topic.kind), topic.name))


def candidates(topics: Sequence[ImageTopic]) -> list[ImageTopic]:
    """The topics that may be meant if none is named: more than one if the choice is ambiguous.

    A raw and a compressed topic of the same camera count as one, and the one with more images is taken. The only image
    topic of a bag may also be a dark grey one, which looks like a mask, but none whose name says that it is one.
    """
    filled = [topic for topic in topics if topic.message_count] or list(topics)
    for kind in (COLOUR, GREY, DRAWN):
        chosen = [topic for topic in filled if topic.kind == kind]
        if chosen:
            return _without_transports(chosen)
    named = re.compile("|".join(rf"(?<![a-z])({words})(?![a-z])" for words in _WORDS.values()))
    return [topic for topic in filled if topic.kind != DEPTH and not named.search(topic.name.lower())]


def _without_transports(topics: Sequence[ImageTopic]) -> list[ImageTopic]:
    """One topic of each camera."""
    best: dict[str, ImageTopic] = {}
    for topic in sorted(topics, key=lambda topic: topic.name.endswith(_TRANSPORT)):  # raw images lose nothing: first
        camera = topic.name.removesuffix(_TRANSPORT)
        if camera not in best or topic.message_count > best[camera].message_count:
            best[camera] = topic
    return list(best.values())
