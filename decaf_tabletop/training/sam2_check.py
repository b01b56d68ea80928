"""Measures a SAM 2 on clips of the tabletop simulator, with the node's code.

python -m decaf_tabletop.training.sam2_check --model decaf_tabletop/models/tabletop_sam2 --data CLIPS
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_tabletop.training.clips import validation_clips
from decaf_tabletop.world.clip import TabletopClip

CLICK_AREA = 60  # minimum visible pixels of an object that is clicked or starts a track
SURE_AREA = 20  # with 1 to 19 visible pixels an object counts neither as seen nor as gone
LAST_FRAMES = 3  # a track's IoU is averaged over so many frames at the end of a clip
TAKEN_SHARE = 0.3  # a track takes another object along if its last mask covers more of it than this


@dataclass
class ClickScores:
    """One entry per click: true and predicted IoU, object score, category and size for clicks on objects; the
    `_off_object` fields are for clicks away from all objects."""

    iou: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    size: list[str] = field(default_factory=list)
    predicted_off_object: list[float] = field(default_factory=list)
    score_off_object: list[float] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Summary. correlation: Pearson's, of true and predicted IoU, with a true IoU of 0 for clicks off objects."""
        true = np.array(self.iou + [0.0] * len(self.predicted_off_object))
        predicted = np.array(self.predicted + self.predicted_off_object)
        return {
            "one_click_iou": float(np.mean(self.iou)),
            "one_click_over_0.5": float(np.mean(np.array(self.iou) > 0.5)),
            "correlation": _correlation(true, predicted),
            "correlation_on_objects": _correlation(np.array(self.iou), np.array(self.predicted)),
            "predicted_beside": float(np.mean(self.predicted_off_object or [np.nan])),
            "score_right_on": float(np.mean(np.array(self.score) > 0)),
            "score_right_beside": float(np.mean(np.array(self.score_off_object or [np.nan]) <= 0)),
        }


@dataclass
class TrackScores:
    """Scores of tracks.

    Attributes:
        iou: IoU at the end of each track.
        hidden: whether its object was hidden on the way.
        took_another: whether its last mask covers more than TAKEN_SHARE of another object.
        right_seen: for each frame with a visible object, whether the object score was positive.
        right_gone: for each frame without the object, whether the object score was not positive.
    """

    iou: list[float] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    took_another: list[bool] = field(default_factory=list)
    right_seen: list[bool] = field(default_factory=list)
    right_gone: list[bool] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Summary; NaN for an empty mean."""
        iou, hidden = np.array(self.iou), np.array(self.hidden, bool)
        return {
            "followed_iou": float(np.mean(iou if len(iou) else [np.nan])),
            "followed_iou_hidden": float(np.mean(iou[hidden] if hidden.any() else [np.nan])),
            "took_another": float(np.mean(self.took_another or [np.nan])),
            "tracks": len(iou),
            "tracks_hidden": int(hidden.sum()),
            "score_right_seen": float(np.mean(self.right_seen or [np.nan])),
            "score_right_gone": float(np.mean(self.right_gone or [np.nan])),
        }


def score_clicks(sam2: Sam2, clips: Sequence[TabletopClip]) -> ClickScores:
    """One click on a random visible pixel of every object, and one away from all, on the first, middle and last frame
    of every clip."""
    result = ClickScores()
    for clip in clips:
        sequence = clip.frames()
        for index in (0, (len(clip) - 1) // 2, len(clip) - 1):
            labels, rng = clip.labels[index], np.random.default_rng((clip.seed, index))
            height, width = labels.shape
            objects = [label for label in range(1, len(clip.objects) + 1) if (labels == label).sum() >= CLICK_AREA]
            background = cv2.dilate((labels > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
            places = [np.argwhere(labels == label) for label in objects] + [np.argwhere(background)]
            pixels = np.array([coordinates[rng.integers(len(coordinates))] for coordinates in places])
            predictions = sam2.masks_at_points(
                sam2.embed(sequence[index]), ((pixels[:, ::-1] + 0.5) / (width, height)).astype(np.float32)
            )
            masks = predictions.masks.cpu().numpy()
            for k, label in enumerate(objects):
                thing = clip.objects[label - 1]
                result.iou.append(_iou(masks[k], labels == label))
                result.predicted.append(float(predictions.iou[k]))
                result.score.append(float(predictions.object_score[k]))
                result.category.append(thing.category)
                result.size.append(thing.size)
            result.predicted_off_object.append(float(predictions.iou[-1]))
            result.score_off_object.append(float(predictions.object_score[-1]))
    return result


def score_tracks(sam2: Sam2, clips: Sequence[TabletopClip]) -> TrackScores:
    """Follows the objects of every clip from their true first-frame masks to the last frame.

    The IoU is the mean over those of the LAST_FRAMES in which the object is visible. Hidden: in between it showed less
    than 0.4 of its median area, and over 0.6 at the end.
    """
    result = TrackScores()
    for clip in clips:
        objects, tracks = track_objects(sam2, clip)
        for k, label in enumerate(objects):
            truth = clip.labels == label
            area = truth.sum((1, 2))
            scores = tracks.scores[k]
            result.right_seen += (scores[1:][area[1:] >= SURE_AREA] > 0).tolist()
            result.right_gone += (scores[1:][area[1:] == 0] <= 0).tolist()
            ends = [index for index in range(len(clip) - LAST_FRAMES, len(clip)) if area[index] >= CLICK_AREA]
            if ends:
                result.iou.append(float(np.mean([_iou(tracks.masks[k][index], truth[index]) for index in ends])))
                result.took_another.append(_covers_another(tracks.masks[k][ends[-1]], clip.labels[ends[-1]], label))
                median = np.median(area)
                result.hidden.append(
                    bool(area[1:-LAST_FRAMES].min() < 0.4 * median and area[ends].mean() > 0.6 * median)
                )
    return result


def _covers_another(mask: np.ndarray, labels: np.ndarray, label: int) -> bool:
    """Whether a mask of object `label` covers more than TAKEN_SHARE of another visible one.

    mask: (H, W) bool. labels: (H, W) uint8.
    """
    shown, covered = (np.bincount(part.ravel(), minlength=256) for part in (labels, labels[mask]))
    others = (shown >= CLICK_AREA) & ~np.isin(np.arange(len(shown)), (0, label))
    return bool((covered[others] > TAKEN_SHARE * shown[others]).any())


@dataclass
class Tracks:
    """masks: (n, F, H, W) bool; scores: (n, F) object scores."""

    masks: np.ndarray
    scores: np.ndarray


def track_objects(sam2: Sam2, clip: TabletopClip) -> tuple[list[int], Tracks]:
    """Labels of the objects in the first frame, and their tracks."""
    labels, frames = clip.labels[0], clip.frames()
    objects = [label for label in range(1, len(clip.objects) + 1) if (labels == label).sum() >= CLICK_AREA]
    prompts = torch.from_numpy(np.stack([labels == label for label in objects])).to(sam2.device)
    memory = ObjectMemory.start(sam2, sam2.embed(frames[0]), prompts, 0, len(frames))
    steps = [memory.latest, *(memory.step(sam2.embed(frame)) for frame in frames[1:])]
    masks = torch.stack([step.masks for step in steps], dim=1).cpu().numpy()
    return objects, Tracks(masks, torch.stack([step.object_score for step in steps], dim=1).cpu().numpy())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; NaN if one is constant."""
    return float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) and np.ptp(second) else float("nan")


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def contact_sheet(sam2: Sam2, clips: Sequence[TabletopClip], shown: Sequence[int] = (0, 8, 16, 24, 31)) -> np.ndarray:
    """(H, W, 3) uint8 RGB: one row per clip. The left cell shows the masks from one click per object, the others the
    tracks at the frames `shown`."""
    rows = []
    for clip in clips:
        objects, tracks = track_objects(sam2, clip)
        rng = np.random.default_rng(zlib.crc32(str(clip.seed).encode()))
        height, width = clip.labels.shape[1:]
        places = [np.argwhere(clip.labels[0] == label) for label in objects]
        pixels = np.array([coordinates[rng.integers(len(coordinates))] for coordinates in places])
        xy = ((pixels[:, ::-1] + 0.5) / (width, height)).astype(np.float32)
        clicks = sam2.masks_at_points(sam2.embed(clip.frames()[0]), xy).masks.cpu().numpy()
        cells = [_painted(clip.images[0], clicks)]
        for row, column in pixels:
            cv2.drawMarker(cells[0], (int(column), int(row)), (255, 255, 255), cv2.MARKER_CROSS, 7, 1)
        cells += [_painted(clip.images[index], tracks.masks[:, index]) for index in shown]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _painted(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A copy of the image with tinted and outlined masks."""
    result = image.copy()
    for number, mask in enumerate(masks):
        color = cv2.cvtColor(np.uint8([[[number * 37 % 180, 255, 255]]]), cv2.COLOR_HSV2RGB)[0, 0]
        result[mask] = 0.6 * result[mask] + 0.4 * color
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, color.tolist(), 1)
    return result


def main() -> None:
    from decaf_tabletop.world.store import read_clip

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with model.yaml and model.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of clips that were not trained on")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of the first eight clips, PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        paths = validation_clips(arguments.data)[: arguments.clips]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    sam2 = load_sam2(Sam2Config(str(arguments.model), device="cpu"))
    clips = [read_clip(path) for path in paths]
    clicks = score_clicks(sam2, clips)
    print(f"{len(clips)} clips, {len(clicks.iou)} clicks on objects, {len(clicks.score_off_object)} beside")
    for name, value in clicks.means().items():
        print(f"{name:24} {value:.3f}")
    iou = np.array(clicks.iou)
    for title, groups in (("category", clicks.category), ("size", clicks.size)):
        for group in sorted(set(groups)):
            group_iou = iou[np.array(groups) == group]
            print(f"one_click_iou {title} {group:8} {group_iou.mean():.3f} ({len(group_iou)})")
    for name, value in score_tracks(sam2, clips).means().items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")
    if arguments.sheet:
        cv2.imwrite(str(arguments.sheet), contact_sheet(sam2, clips[:8])[..., ::-1])


if __name__ == "__main__":
    main()
