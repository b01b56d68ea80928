"""The first half of the demo MLLM's training: a vision tower whose tokens say what they show.

Dense targets: every visual token is to be the sum of the vectors of what is there (`mllm_words.py`). Two probes
on the patches, two layers before the end, carry finer targets: where within the patch the object is, of what category,
and how far away its centre. They start the tower on shapes, which it otherwise takes up late, and are thrown away
afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from decaf_tabletop.training.cpu import speed_up
from decaf_tabletop.training.mllm_lessons import Visual
from decaf_tabletop.training.mllm_model import MERGE, PATCH, SHAPE_LAYER, TOKEN_PX, VISION_HIDDEN
from decaf_tabletop.training.mllm_words import GROUPS, NORM, OFFSETS, meanings, mirrored
from decaf_tabletop.world.clip import TabletopClip

FINE = 4  # mask cells a patch, each way
SHARPNESS = 10.0  # of the class probabilities: exp(SHARPNESS * how much of a vector there is)


@dataclass(frozen=True, eq=False)
class Scenes:
    """S training images of one grid. pixels: (S, 2, H, W, 3) uint8, a temporal pair each, or (S, 1, H, W, 3), single
    frames. owners: (S, h, w) uint8. facts: (S, 6, FACTS) float16, of the surroundings, then of up to five objects.
    fine: (S, h * MERGE * FINE, w * MERGE * FINE) uint8, owners of cells. boxes: (S, 6, 4) float32, centre x, y, width
    and height of what is seen of each object, in image widths and heights."""

    pixels: np.ndarray
    owners: np.ndarray
    facts: np.ndarray
    fine: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def some(self, places: np.ndarray) -> Scenes:
        return Scenes(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    def varied(self, rng: np.random.Generator) -> Scenes:
        """Half of them mirrored, all a little lighter or darker."""
        flip = rng.random(len(self)) < 0.5
        pixels = self.pixels.astype(np.float32) * rng.uniform(0.8, 1.2, (len(self), 1, 1, 1, 1)).astype(np.float32)
        pixels = pixels.clip(0, 255).astype(np.uint8)
        owners, facts, fine, boxes = (array.copy() for array in (self.owners, self.facts, self.fine, self.boxes))
        pixels[flip] = pixels[flip][:, :, :, ::-1]
        owners[flip], fine[flip] = owners[flip][..., ::-1], fine[flip][..., ::-1]
        facts[flip] = facts[flip][..., _MIRRORED]
        boxes[flip, :, 0] = np.where(boxes[flip, :, 2] > 0, 1 - boxes[flip, :, 0], 0)
        return Scenes(pixels, owners, facts, fine, boxes)

    def cropped(self, side: int, rng: np.random.Generator) -> Scenes:
        """Of each one side x side tokens around one object: cheap, and with little but objects in it. Neighbours are
        unknown there."""
        parts = []
        for place in range(len(self)):
            owners, boxes = self.owners[place], self.boxes[place]
            seen = np.flatnonzero(boxes[:, 2] > 0)
            # Without an object anywhere: the middle.
            centre = boxes[rng.choice(seen), :2] if len(seen) else np.full(2, 0.5)
            room = np.array(owners.shape[::-1]) - side
            x, y = np.clip(np.round(centre * owners.shape[::-1] - side / 2), 0, room).astype(int)
            rows = [slice(y * step, (y + side) * step) for step in (1, TOKEN_PX, MERGE * FINE)]
            columns = [slice(x * step, (x + side) * step) for step in (1, TOKEN_PX, MERGE * FINE)]
            facts = self.facts[place].copy()
            facts[:, OFFSETS["neighbours"] :] = 0.5
            moved = boxes.copy()
            moved[:, :2] = (boxes[:, :2] * owners.shape[::-1] - (x, y)) / side
            moved[:, 2:] = boxes[:, 2:] * owners.shape[::-1] / side
            parts.append(
                (
                    self.pixels[place][:, rows[1], columns[1]],
                    owners[rows[0], columns[0]],
                    facts,
                    self.fine[place][rows[2], columns[2]],
                    moved,
                )
            )
        return Scenes(*(np.stack(part) for part in zip(*parts)))


def shrink(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8 to a grid's pixels, as the adapter does."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    size = [side * TOKEN_PX for side in grid]
    return resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True).permute(0, 2, 3, 1).numpy()


def scenes(clip: TabletopClip, visual: Visual, grid: tuple[int, int], rows: np.ndarray) -> Scenes:
    """Of some rows of a visual."""
    frames = visual.rows[rows]
    single = (frames[:, 0] == frames[:, 1]).all()
    pixels = np.stack([shrink(clip.images[pair[:1] if single else pair], grid) for pair in frames])
    facts = np.zeros((len(rows), 6, visual.facts.shape[-1]), np.float16)
    facts[:, : visual.facts.shape[1]] = visual.facts[rows]
    height, width = (side * MERGE * FINE for side in grid)
    firsts = clip.labels[frames[:, 0]]
    fine = np.stack([cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST) for labels in firsts])
    return Scenes(pixels, visual.owners[rows].astype(np.uint8), facts, fine, np.stack([_boxes(one) for one in firsts]))


def _boxes(labels: np.ndarray) -> np.ndarray:
    boxes = np.zeros((6, 4), np.float32)
    height, width = labels.shape
    for k in range(1, 6):
        ys, xs = np.nonzero(labels == k)
        if len(xs):
            left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
            boxes[k] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return boxes / np.array([width, height, width, height], np.float32)


def joined(parts: list[Scenes]) -> Scenes:
    return Scenes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scenes.__dataclass_fields__))


def _whole(boxes: np.ndarray) -> torch.Tensor:
    """(S, 6) bool: objects that are not cut off by the border, and the surroundings."""
    centre, half = torch.from_numpy(boxes[..., :2]), torch.from_numpy(boxes[..., 2:]) / 2
    inside = (centre + half).clamp(0, 1) - (centre - half).clamp(0, 1)
    return (inside >= 0.8 * 2 * half).all(-1)


_MIRRORED = mirrored()
_MEAN = torch.tensor(OPENAI_CLIP_MEAN) * 255
_SCALE = 1 / (torch.tensor(OPENAI_CLIP_STD) * 255)


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """(S, 1 or 2, H, W, 3) uint8 to (S * patches, 3 * 2 * PATCH**2) float32, in the processors' order: the
    MERGE x MERGE patches of a token after each other, of each patch channel, time, row, column."""
    pixels = pixels.expand(-1, 2, -1, -1, -1)
    s, t, height, width, _ = pixels.shape
    h, w = height // TOKEN_PX, width // TOKEN_PX
    values = (pixels.float() - _MEAN) * _SCALE
    values = values.view(s, t, h, MERGE, PATCH, w, MERGE, PATCH, 3)
    values = values.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return values.reshape(s * h * w * MERGE**2, 3 * t * PATCH**2)


@torch.no_grad()
def whiten_patches(model: Qwen2_5_VLForConditionalGeneration, scenes: Scenes) -> None:
    """Starts the patch embedding at the principal components of real patches, scaled towards equal variance.

    Random filters hear little but a patch's mean colour, and shapes then come late. Three quarters of the filters see
    the mean of a temporal pair, the others its difference.
    """
    kernel = model.model.visual.patch_embed.proj.weight  # (VISION_HIDDEN, 3, 2, PATCH, PATCH)
    seen = patches(torch.from_numpy(scenes.pixels)).view(-1, 3, 2, PATCH, PATCH)
    size = 3 * PATCH**2
    counts = (len(kernel) * 3 // 4, len(kernel) // 4)
    filters = []
    for part, sign, count in zip((seen.mean(2), (seen[:, :, 1] - seen[:, :, 0]) / 2), (1.0, -1.0), counts):
        part = part.reshape(-1, size)
        values, vectors = torch.linalg.eigh(torch.cov(part.T))
        values = values[-count:].clamp(min=1e-4)
        # The deviations' square roots: wholly evened out, the fine grain of the ground would drown the objects.
        vectors = vectors[:, -count:] * values**-0.25 / values.sqrt().mean().sqrt()
        space = vectors.T.reshape(count, 3, 1, PATCH, PATCH)
        filters.append(torch.cat([space * sign, space], dim=2) / 2)
    kernel.copy_(torch.cat(filters))


class TowerTrainer:
    """Trains the vision tower of a model together with its probes."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        self.tower = model.model.visual.train()
        speed_up(self.tower)
        self.probes = nn.Linear(VISION_HIDDEN, FINE**2 + 4 + len(GROUPS["category"]))
        self.parameters = [*self.tower.parameters(), *self.probes.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
        self.meanings = meanings()

    def state_dict(self) -> dict:
        parts = {"tower": self.tower, "probes": self.probes, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict) -> None:
        self.tower.load_state_dict(state["tower"])
        self.probes.load_state_dict(state["probes"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def check(self, batch: Scenes, size: int = 32) -> dict[str, float]:
        """Accuracy by group on scenes that are not trained on."""
        starts = range(0, len(batch), size)
        parts = [self._loss(batch.some(np.arange(at, min(at + size, len(batch)))))[1] for at in starts]
        return {
            group: float(np.mean([part[group] for part in parts if group in part]))
            for group in (*GROUPS, "neighbours", "no_neighbours")
        }

    def features(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (S * h * w, HIDDEN) and patches after SHAPE_LAYER layers (S * h * w * MERGE**2, VISION_HIDDEN)."""
        s, _, height, width, _ = pixels.shape
        grid = torch.tensor([[1, height // PATCH, width // PATCH]]).expand(s, -1)
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.tower(patches(torch.from_numpy(pixels)), grid_thw=grid, output_hidden_states=True)
        return seen.pooler_output.float(), seen.hidden_states[SHAPE_LAYER].float()

    def step(self, batches: list[Scenes], rate: float) -> dict[str, float]:
        """One update on scenes of several grids. Returns the loss, and the accuracy on tokens of objects by group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        marks: dict[str, list[float]] = {}
        for batch in batches:
            loss, right = self._loss(batch)
            loss.backward()
            for name, value in {"loss": loss.item(), **right}.items():
                marks.setdefault(name, []).append(value)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {name: float(np.nanmean(values)) for name, values in marks.items()}

    def _loss(self, batch: Scenes) -> tuple[torch.Tensor, dict[str, float]]:
        tokens, hidden = self.features(batch.pixels)
        owners = torch.from_numpy(batch.owners.astype(np.int64)).flatten(1)
        facts, whole = torch.from_numpy(batch.facts).float(), _whole(batch.boxes)
        wanted = facts.gather(1, owners[..., None].expand(-1, -1, facts.shape[-1])).flatten(0, 1)
        judged = whole.gather(1, owners).flatten()
        tokens, wanted, owners = tokens[judged], wanted[judged], owners.flatten()[judged]
        said = tokens @ (self.meanings / self.meanings.square().sum(1, keepdim=True)).T
        # Neighbours, which are the hardest, have a loss of their own; what else a token says is exact.
        near = OFFSETS["neighbours"]
        wrong = tokens - said[:, near:] @ self.meanings[near:] - wanted[:, :near] @ self.meanings[:near]
        loss = wrong.square().sum(1).mean() / NORM**2
        right = {}
        # What moves is in few tokens, and what falls in fewer.
        motion = OFFSETS["motion"] + np.array([GROUPS["motion"].index(name) for name in ("still", "fell")])
        counts = 1 + (owners > 0) * (1 - wanted[:, motion[0]]) + 2 * wanted[:, motion[1]]
        for group, names in GROUPS.items():
            part = slice(OFFSETS[group], OFFSETS[group] + len(names))
            concerned = wanted[:, part].sum(1) > 0
            logits, truth = said[concerned, part] * SHARPNESS, wanted[concerned, part]
            if len(truth):
                surprise = F.cross_entropy(logits, truth, reduction="none") * counts[concerned]
                loss = loss + surprise.sum() / counts[concerned].sum() * (2.0 if group == "category" else 1.0)
                right[group] = (logits.argmax(1) == truth.argmax(1)).float().mean().item()
        logits, truth = (said[owners > 0, near:] - 0.5) * SHARPNESS, wanted[owners > 0, near:]
        clear = truth != 0.5
        if clear.any():
            logits, truth = logits[clear], truth[clear]
            loss = loss + 4 * F.binary_cross_entropy_with_logits(logits, truth, weight=1 + 2 * truth)
            right["neighbours"] = (logits > 0)[truth == 1].float().mean().item()
            right["no_neighbours"] = (logits < 0)[truth == 0].float().mean().item()
        return loss + self._fine_loss(hidden, batch), right

    def _fine_loss(self, hidden: torch.Tensor, batch: Scenes) -> torch.Tensor:
        """The object's mask within each patch, its category, and where its centre is."""
        s, height, width = batch.fine.shape
        h, w = height // (MERGE * FINE), width // (MERGE * FINE)
        fine = torch.from_numpy(batch.fine.astype(np.int64))
        cells = fine.view(s, h, MERGE, FINE, w, MERGE, FINE).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, FINE**2)
        said = self.probes(hidden)
        loss = F.binary_cross_entropy_with_logits(said[:, : FINE**2], (cells > 0).float())
        owner = cells.max(1).values
        scene = torch.arange(s).repeat_interleave(h * w * MERGE**2)
        mine = (owner > 0) & _whole(batch.boxes)[scene, owner]
        part = slice(OFFSETS["category"], OFFSETS["category"] + len(GROUPS["category"]))
        category = torch.from_numpy(batch.facts).float()[scene[mine], owner[mine], part].argmax(1)
        loss = loss + F.cross_entropy(said[mine, FINE**2 + 4 :], category)
        # Where is its centre from here, and how large is it? In units of two tokens.
        columns, rows = torch.meshgrid(torch.arange(w * MERGE), torch.arange(h * MERGE), indexing="xy")
        here = torch.stack([(columns + 0.5) / (w * MERGE), (rows + 0.5) / (h * MERGE)], dim=-1)
        here = here.view(h, MERGE, w, MERGE, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2).repeat(s, 1)[mine]
        box = torch.from_numpy(batch.boxes)[scene[mine], owner[mine]]
        tokens = torch.tensor([w, h], dtype=torch.float32)
        offsets = torch.cat([(box[:, :2] - here) * tokens, box[:, 2:] * tokens], dim=1) / 2
        return loss + F.smooth_l1_loss(said[mine, FINE**2 : FINE**2 + 4], offsets)
