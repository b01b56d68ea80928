"""Trains the table's SAM 2 on clips of the tabletop simulator.

python -m decaf_tabletop.training.sam2 --data CLIPS --out decaf_tabletop/models/tabletop_sam2

CLIPS: a folder written by `python -m decaf_tabletop.world.store`; it may still grow. Recipe and limits:
decaf_tabletop/README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_tabletop.training.clips import validation_clips
from decaf_tabletop.training.cpu import keep_freed_memory
from decaf_tabletop.training.origin import check_origin, digest
from decaf_tabletop.training.sam2_check import score_clicks, score_tracks
from decaf_tabletop.training.sam2_data import (
    CLICK_AREA,
    ClipPool,
    Pair,
    augmented,
    clicks,
    dense_targets,
    make_targets,
    masks_at,
    touching,
    with_cut,
    with_object_in_front,
    with_patch_in_front,
)
from decaf_tabletop.training.sam2_losses import Losses, Predictions, losses, mask_loss
from decaf_tabletop.training.sam2_model import fresh_model, write_model
from decaf_tabletop.training.sam2_steps import AuxiliaryHeads, cheap_attention, click, embed, follow
from decaf_tabletop.world.clip import TabletopClip

# Share of the schedule, its end, that --go-on-from repeats.
FINAL_PHASE = 0.4


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters.

    Attributes:
        minutes: duration of the whole schedule, which follows the clock.
        single: share of the time with single frames only; afterwards every other step takes stretches of clips.
        frames: images per step on single frames.
        clips: stretches per step.
        most_objects: objects followed per step on stretches.
        rate: peak learning rate.
        warm_up_steps: steps of linear warm-up.
        averaging: decay of the running average of the weights, which is measured and stored.
        pool: clips in memory.
    """

    minutes: float = 150.0
    single: float = 0.25
    frames: int = 10
    clips: int = 4
    most_objects: int = 12
    rate: float = 1.2e-3
    warm_up_steps: int = 150
    averaging: float = 0.998
    pool: int = 100


class Trainer:
    """The network, its running average, the optimiser and the generator: everything a training state holds."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.model = fresh_model(seed)
        self.heads = AuxiliaryHeads()
        self.average = fresh_model(seed).requires_grad_(False)
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        groups = [
            {"params": [value for value in parameters if value.ndim > 1], "weight_decay": 0.02},
            {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))
        self.rng = np.random.default_rng(seed)
        self.step = 0
        self.elapsed_s = 0.0
        self.begun_from = ""

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, in [0, 1]."""
        return min(1.0, self.elapsed_s / (60 * self.recipe.minutes))

    @property
    def auxiliary_weight(self) -> float:
        """Weight of the losses through `AuxiliaryHeads`."""
        return 0.0 if self.begun_from else 0.5 - 0.4 * self.progress

    def start_from(self, model: SAM2Base) -> None:
        """Enters the final phase with these weights, without the auxiliary heads, which no checkpoint holds."""
        for target in (self.model, self.average):
            target.load_state_dict(model.state_dict())
        self.elapsed_s = (1 - FINAL_PHASE) * 60 * self.recipe.minutes
        self.begun_from = digest(model.state_dict())

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.bit_generator.state,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "begun_from": self.begun_from,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state's training began from other weights."""
        check_origin(state, self.begun_from)
        for name in ("model", "heads", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.rng.bit_generator.state = state["rng"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def train(self, pool: ClipPool) -> dict[str, float]:
        """One step; returns its losses."""
        began = time.monotonic()
        if self.step % 3 == 0:
            pool.exchange(self.rng)
        on_stretches = self.progress >= self.recipe.single and self.step % 2 == 1
        with cheap_attention():
            loss, report = self._clips(pool) if on_stretches else self._frames(pool)
            self._descend(loss)
        self.step += 1
        self.elapsed_s += time.monotonic() - began
        return {"loss": loss.item(), **report}

    def _frames(self, pool: ClipPool) -> tuple[torch.Tensor, dict[str, float]]:
        """Single frames of many clips: two clicks on every object, some on the background."""
        pairs = [augmented(pair, self.rng) for pair in pool.frames(self.rng, self.recipe.frames)]
        return self._clicked(torch.cat([pixels for pixels, _ in pairs]), [labels[0] for _, labels in pairs], each=2)

    def _clips(self, pool: ClipPool) -> tuple[torch.Tensor, dict[str, float]]:
        """Stretches of clips: objects are followed from their first-frame masks, and clicked once."""
        late = (self.progress - self.recipe.single) / (1 - self.recipe.single)
        length = int(self.rng.integers(2, 4 + round(5 * min(1.0, 1.5 * late))))
        drawn = pool.stretches(self.rng, self.recipe.clips, length)
        cut = [
            pair if self.rng.random() < 0.85 else with_cut(pair, other, self.rng)
            for pair, other in zip(drawn, drawn[1:])
        ]
        cut.append(drawn[-1])
        hidden = [self._with_occluder(pair, drawn[:index] + drawn[index + 1 :]) for index, pair in enumerate(cut)]
        pairs = [augmented(pair, self.rng) for pair in hidden]
        pixels, labels = torch.cat([part for part, _ in pairs]), [image for _, part in pairs for image in part]
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(self.model, pixels)
        loss, report = self._clicked(pixels, labels, each=1, embeddings=embeddings)

        objects = [(clip, label) for clip, (_, part) in enumerate(pairs) for label in _visible(part[0])]
        objects = [objects[index] for index in self.rng.permutation(len(objects))]
        # Objects that touch others come first: they are the hard ones.
        touched = [touching(part) for _, part in pairs]
        objects = sorted(objects, key=lambda item: item[1] not in touched[item[0]])[: self.recipe.most_objects]
        if not objects:
            return loss, report
        clips = [clip for clip, _ in objects]
        clip_indices = torch.tensor(clips)
        object_labels = [label for _, label in objects]
        images = [[pairs[clip][1][index] for clip in clips] for index in range(length)]
        truth = [masks_at(part, object_labels) for part in images]
        targets = [make_targets(part, object_labels) for part in images]
        forced = torch.from_numpy(self.rng.random(len(objects)) < 0.5 * max(0.0, 1 - 2 * late))
        with torch.autocast("cpu", torch.bfloat16):
            predictions, tokens = follow(
                self.model,
                [embeddings.select(clip_indices * length + index) for index in range(length)],
                truth[0],
                truth,
                [part.flatten(1).any(1) for part in truth],
                forced,
            )
            rough_masks = [self.heads.rough_masks(part) for part in tokens]
        # Few objects are hidden altogether: unweighted, and without `with_cut`, the object score never became negative.
        parts = [losses(*pair, absent_weight=3) for pair in zip(predictions, targets[1:])]
        rough = [sum(mask_loss(mask, goal) for mask in masks[:2]) for masks, goal in zip(rough_masks, targets[1:])]
        rough = sum(rough) / len(rough)
        # A memory holds the predicted mask, so its own loss takes only the teacher-forced objects.
        memory = [mask_loss(masks[2][forced], goal.select(forced)) for masks, goal in zip(rough_masks, targets[1:])]
        memory = sum(memory) / len(memory)
        loss = loss + sum(_total(part) for part in parts) / len(parts) + self.auxiliary_weight * (rough + memory)
        last = parts[-1]
        means = {"follow_mask": last.mask, "follow_presence": last.presence, "follow_sketch": rough, "kept": memory}
        means = {name: float(value.detach()) for name, value in means.items()}
        return loss, {**report, "follow_iou": last.best_iou, **means}

    def _with_occluder(self, pair: Pair, others: list[Pair]) -> Pair:
        draw = self.rng.random()
        if draw < 0.35 or not others:
            return pair
        return (with_patch_in_front if draw < 0.55 else with_object_in_front)(pair, others, self.rng)

    def _clicked(
        self, pixels: torch.Tensor, labels: list[np.ndarray], each: int, embeddings: Any = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = clicks(labels, self.rng, each, background=0.6 * each)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(self.model, pixels) if embeddings is None else embeddings
            dense = self.heads(embeddings, *dense_targets(labels))
            predictions, tokens = click(self.model, embeddings.select(chosen.frame), chosen.points)
            (rough_mask,) = self.heads.rough_masks(tokens)
        multimask = Predictions(predictions.logits[:, 1:], predictions.iou[:, 1:], predictions.object_score)
        single = Predictions(predictions.logits[:, :1], predictions.iou[:, :1], predictions.object_score)
        main: Losses = losses(multimask, chosen.targets)
        extra: Losses = losses(single, chosen.targets)
        rough = mask_loss(rough_mask, chosen.targets)
        loss = _total(main) + 0.3 * (extra.mask + extra.iou) + self.auxiliary_weight * (dense + rough)
        report = {"mask": main.mask.item(), "iou_error": main.iou.item(), "presence": main.presence.item()}
        return loss, {**report, "dense": dense.item(), "sketch": rough.item(), "click_iou": main.best_iou}

    def _descend(self, loss: torch.Tensor) -> None:
        recipe = self.recipe
        rate = recipe.rate * min(1.0, (self.step + 1) / recipe.warm_up_steps)
        rate *= 0.02 + 0.98 * (1 + np.cos(np.pi * self.progress)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = float(rate)  # no NumPy scalar, which `read_state` refuses
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        keep = min(recipe.averaging, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            pairs = list(zip(self.average.parameters(), self.model.parameters()))
            torch._foreach_lerp_([average for average, _ in pairs], [new for _, new in pairs], 1 - keep)


def _total(part: Losses) -> torch.Tensor:
    return part.mask + 2 * part.iou + part.presence


def _visible(labels: np.ndarray) -> list[int]:
    return [int(label) for label in np.unique(labels) if label and (labels == label).sum() >= CLICK_AREA]


def main() -> None:
    from decaf_tabletop.world.store import read_clip

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of clips; it may still grow")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.yaml and model.safetensors")
    parser.add_argument("--validation", type=Path, help="folder of clips for measurements during training")
    parser.add_argument("--work", type=Path, help="folder for state and log; default: OUT with .training appended")
    whole, last = Recipe.minutes, FINAL_PHASE * Recipe.minutes
    parser.add_argument("--minutes", type=float, help=f"default: {whole:.0f}; with --go-on-from {last:.0f}")
    parser.add_argument("--go-on-from", help="folder of a model: repeat the end of the schedule from its weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    work = arguments.work or arguments.out.with_name(arguments.out.name + ".training")
    work.mkdir(parents=True, exist_ok=True)
    share = FINAL_PHASE if arguments.go_on_from else 1.0
    minutes = arguments.minutes or share * Recipe.minutes
    trainer = Trainer(Recipe(minutes / share), arguments.seed)
    if arguments.go_on_from:
        trainer.start_from(load_sam2(Sam2Config(arguments.go_on_from, device="cpu")).model)
    if (work / "checkpoint.pt").exists():
        trainer.restore(read_state(work / "checkpoint.pt"))
        print(f"{work}: resumes at step {trainer.step}", flush=True)
    run(trainer, read_clip, arguments.data, arguments.validation, work, arguments.out)


def read_state(file: Path) -> dict[str, Any]:
    """A state that `run` has saved. Reads tensors and plain values only, and runs no code of the file."""
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def run(
    trainer: Trainer,
    read_clip: Callable[[Path], TabletopClip],
    data: Path,
    validation: Path | None,
    work: Path,
    out: Path,
) -> None:
    """Trains until the recipe's minutes are over, then writes the model.

    Saves the state every two minutes, and measures every seven. Raises FileNotFoundError if a folder has no clips,
    ValueError for a training seed in `validation` or a measurement seed in `data`.
    """
    held_out = [read_clip(path) for path in validation_clips(validation)[:24]] if validation else []
    pool = ClipPool(data, read_clip, trainer.recipe.pool)
    for _ in range(trainer.recipe.pool // 2):
        pool.exchange(trainer.rng)
    saved = measured = trainer.elapsed_s
    recent: list[dict[str, float]] = []
    while trainer.progress < 1:
        recent.append(trainer.train(pool))
        if trainer.step % 20 == 0:
            _log(work, trainer, recent)
            recent = []
        if trainer.elapsed_s - saved > 120 or trainer.progress == 1:
            saved = trainer.elapsed_s
            torch.save(trainer.state(), work / "checkpoint.part")
            (work / "checkpoint.part").replace(work / "checkpoint.pt")
        if held_out and (trainer.elapsed_s - measured > 420 or trainer.progress == 1):
            measured = trainer.elapsed_s
            sam2 = Sam2(trainer.average, Sam2Config(device="cpu"))
            _log(work, trainer, [{**score_clicks(sam2, held_out).means(), **score_tracks(sam2, held_out[::4]).means()}])
    # Only at the end, to keep a model that is already there.
    write_model(out, trainer.average)


def _log(work: Path, trainer: Trainer, entries: list[dict[str, float]]) -> None:
    """Prints one line with the means, and appends it to log.jsonl."""
    names = sorted({name for entry in entries for name in entry})
    means = {name: float(np.mean([entry[name] for entry in entries if name in entry])) for name in names}
    line = {"step": trainer.step, "minutes": trainer.elapsed_s / 60, **means}
    line = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
    print(" ".join(f"{name}={value}" for name, value in line.items()), flush=True)
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
