"""Measures a SAM 2 on clips of the tabletop simulator, by the code that the node uses:

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
from decaf_ros.segmentation.sam2 import Sam2, load_sam2
from decaf_tabletop.training.clips import validation_clips
from decaf_tabletop.world.clip import TabletopClip

CLICK_AREA = 60  # pixels that an object must show to be clicked, or to begin a track
SURE_AREA = 20  # with fewer, but some, an object counts neither as seen nor as gone
LAST = 3  # frames at the end of a clip over which a track's IoU is averaged
TAKEN = 0.3  # share of another object's pixels in a track's last mask, from which it counts as taken along


@dataclass
class Clicked:
    """One entry a click on an object: real and predicted IoU, object score, category, size; and of clicks beside all
    objects the predicted IoU and the object score."""

    iou: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    size: list[str] = field(default_factory=list)
    beside_predicted: list[float] = field(default_factory=list)
    beside_score: list[float] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """The figures in short. correlation: of real and predicted IoU, the clicks beside (real IoU 0) included."""
        real = np.array(self.iou + [0.0] * len(self.beside_predicted))
        predicted = np.array(self.predicted + self.beside_predicted)
        return {
            "one_click_iou": float(np.mean(self.iou)),
            "one_click_over_0.5": float(np.mean(np.array(self.iou) > 0.5)),
            "correlation": _correlation(real, predicted),
            "correlation_on_objects": _correlation(np.array(self.iou), np.array(self.predicted)),
            "predicted_beside": float(np.mean(self.beside_predicted or [np.nan])),
            "score_right_on": float(np.mean(np.array(self.score) > 0)),
            "score_right_beside": float(np.mean(np.array(self.beside_score or [np.nan]) <= 0)),
        }


@dataclass
class Followed:
    """One entry a track: IoU at its end, whether it was hidden on the way, whether it ends with more than TAKEN of
    another object in the mask; and per frame of all tracks, whether the object score was right where the object is
    seen, and where it is not."""

    iou: list[float] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    took_another: list[bool] = field(default_factory=list)
    right_seen: list[bool] = field(default_factory=list)
    right_gone: list[bool] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """The figures in short; NaN where there is nothing to average."""
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


def clicked(sam2: Sam2, clips: Sequence[TabletopClip], frames: Sequence[int] = (0, 15, 31)) -> Clicked:
    """One click on a random visible pixel of every object, and one beside all, on these frames of every clip."""
    result = Clicked()
    for clip in clips:
        sequence = clip.frames()
        for index in frames:
            labels, rng = clip.labels[index], np.random.default_rng((clip.seed, index))
            height, width = labels.shape
            objects = [one for one in range(1, len(clip.objects) + 1) if (labels == one).sum() >= CLICK_AREA]
            beside = cv2.dilate((labels > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
            places = [np.argwhere(labels == one) for one in objects] + [np.argwhere(beside)]
            pixels = np.array([place[rng.integers(len(place))] for place in places])
            found = sam2.masks_at_points(
                sam2.embed(sequence[index]), ((pixels[:, ::-1] + 0.5) / (width, height)).astype(np.float32)
            )
            for place, one in enumerate(objects):
                thing = clip.objects[one - 1]
                result.iou.append(_iou(found.masks[place].cpu().numpy(), labels == one))
                result.predicted.append(float(found.iou[place]))
                result.score.append(float(found.object_score[place]))
                result.category.append(thing.category)
                result.size.append(thing.size)
            result.beside_predicted.append(float(found.iou[-1]))
            result.beside_score.append(float(found.object_score[-1]))
    return result


def followed(sam2: Sam2, clips: Sequence[TabletopClip]) -> Followed:
    """The objects of every clip from their true masks on its first frame to its last; IoU over the last LAST frames,
    where they are seen. Hidden: on the way it showed less than 0.4 of its median area, at the end over 0.6 again."""
    result = Followed()
    for clip in clips:
        objects, tracks = tracked(sam2, clip)
        for place, one in enumerate(objects):
            truth = clip.labels == one
            area = truth.sum((1, 2))
            scores = tracks.scores[place]
            result.right_seen += (scores[1:][area[1:] >= SURE_AREA] > 0).tolist()
            result.right_gone += (scores[1:][area[1:] == 0] <= 0).tolist()
            ends = [index for index in range(len(clip) - LAST, len(clip)) if area[index] >= CLICK_AREA]
            if ends:
                result.iou.append(float(np.mean([_iou(tracks.masks[place][index], truth[index]) for index in ends])))
                result.took_another.append(_takes(tracks.masks[place][ends[-1]], clip.labels[ends[-1]], one))
                middle = np.median(area)
                result.hidden.append(bool(area[1:-LAST].min() < 0.4 * middle and area[ends].mean() > 0.6 * middle))
    return result


def _takes(mask: np.ndarray, labels: np.ndarray, one: int) -> bool:
    """Whether a mask of object `one` covers more than TAKEN of any other that shows. mask: (H, W) bool. labels: (H, W)
    uint8."""
    shown, taken = (np.bincount(part.ravel(), minlength=256) for part in (labels, labels[mask]))
    others = (shown >= CLICK_AREA) & ~np.isin(np.arange(len(shown)), (0, one))
    return bool((taken[others] > TAKEN * shown[others]).any())


@dataclass
class Tracks:
    """masks: (n, F, H, W) bool; scores: (n, F) object scores."""

    masks: np.ndarray
    scores: np.ndarray


def tracked(sam2: Sam2, clip: TabletopClip) -> tuple[list[int], Tracks]:
    """The objects that the first frame shows, as labels, and their tracks from there."""
    labels, frames = clip.labels[0], clip.frames()
    objects = [one for one in range(1, len(clip.objects) + 1) if (labels == one).sum() >= CLICK_AREA]
    prompts = torch.from_numpy(np.stack([labels == one for one in objects])).to(sam2.device)
    memory = ObjectMemory.start(sam2, sam2.embed(frames[0]), prompts, 0, len(frames))
    steps = [memory.latest, *(memory.step(sam2.embed(frame)) for frame in frames[1:])]
    masks = torch.stack([step.masks for step in steps], dim=1).cpu().numpy()
    return objects, Tracks(masks, torch.stack([step.object_score for step in steps], dim=1).cpu().numpy())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; NaN where one of them is constant."""
    return float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) and np.ptp(second) else float("nan")


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def contact_sheet(sam2: Sam2, clips: Sequence[TabletopClip], shown: Sequence[int] = (0, 8, 16, 24, 31)) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a row a clip, its objects followed from the first frame; at the left, instead of the prompt,
    the masks from one click each."""
    rows = []
    for clip in clips:
        objects, tracks = tracked(sam2, clip)
        rng = np.random.default_rng(zlib.crc32(str(clip.seed).encode()))
        height, width = clip.labels.shape[1:]
        places = [np.argwhere(clip.labels[0] == one) for one in objects]
        pixels = np.array([place[rng.integers(len(place))] for place in places])
        xy = ((pixels[:, ::-1] + 0.5) / (width, height)).astype(np.float32)
        clicks = sam2.masks_at_points(sam2.embed(clip.frames()[0]), xy).masks.cpu().numpy()
        cells = [_painted(clip.images[0], clicks)]
        for row, column in pixels:
            cv2.drawMarker(cells[0], (int(column), int(row)), (255, 255, 255), cv2.MARKER_CROSS, 7, 1)
        cells += [_painted(clip.images[index], tracks.masks[:, index]) for index in shown]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _painted(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A copy with the masks' outlines, and a little of their colour inside."""
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
    parser.add_argument("--sheet", type=Path, help="also writes a contact sheet of the first eight clips, PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        paths = validation_clips(arguments.data)[: arguments.clips]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    sam2 = load_sam2(Sam2Config(str(arguments.model), device="cpu"))
    clips = [read_clip(path) for path in paths]
    clicks = clicked(sam2, clips)
    print(f"{len(clips)} clips, {len(clicks.iou)} clicks on objects, {len(clicks.beside_score)} beside")
    for name, value in clicks.means().items():
        print(f"{name:24} {value:.3f}")
    iou = np.array(clicks.iou)
    for title, groups in (("category", clicks.category), ("size", clicks.size)):
        for group in sorted(set(groups)):
            of_group = iou[np.array(groups) == group]
            print(f"one_click_iou {title} {group:8} {of_group.mean():.3f} ({len(of_group)})")
    for name, value in followed(sam2, clips).means().items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")
    if arguments.sheet:
        cv2.imwrite(str(arguments.sheet), contact_sheet(sam2, clips[:8])[..., ::-1])


if __name__ == "__main__":
    main()
