"""Which of several close candidates does the query mean? The multimodal LLM is shown each one (`segmentation.verify`).

Beyond the paper. The attention of one forward pass says where the model looks, which in a cluttered scene may be two
objects; the decision between them is then a matter of a few percent of attention. Here the key frames are shown again
for each candidate, with this one marked (`decaf_ros.segmentation.marking`), and the model says whether it is meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from decaf_ros.config import SegmentationConfig
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.segmentation.marking import marked_image
from decaf_ros.segmentation.scoring import close_objects
from decaf_ros.stages import Steps
from decaf_ros.types import Tracklet, Window


def verify_tracklets(
    grounder: Grounder,
    window: Window,
    query: str,
    tracklets: Sequence[Tracklet],
    config: SegmentationConfig,
    means_several: bool | None,
) -> Steps[list[Tracklet]]:
    """The tracklets in the same order, `verified` for those on objects that the model was asked about.

    Without two close objects nothing is asked. A unit is the marking of one object, or a unit of the engine.

    Args:
        grounder: with the model.
        window: the key frames.
        query: the referring expression or question.
        tracklets: the candidates, best first, as from `score_tracklets`.
        config: how many objects are asked about, and how close they are.
        means_several: see `Grounding.means_several`.
    """
    verified = list(tracklets)
    for members in close_objects(tracklets, config, means_several):
        marked = marked_window(window, tracklets[members[0]], config.verify_frames)
        yield
        margin = yield from grounder.verify(marked, query)
        for index in members:
            verified[index] = dataclasses.replace(tracklets[index], verified=margin)
    return verified


def marked_window(window: Window, tracklet: Tracklet, count: int) -> Window:
    """`count` key frames, evenly spaced from the first to the last, with the tracklet marked; 0: all of them."""
    places = list(range(len(window)))
    if 0 < count < len(window):
        places = np.linspace(0, len(window) - 1, count).round().astype(int).tolist()
    frames = [window.frames[place] for place in places]
    images = [marked_image(frame.image, tracklet.masks[place]) for frame, place in zip(frames, places)]
    return Window(tuple(dataclasses.replace(frame, image=image) for frame, image in zip(frames, images)))
