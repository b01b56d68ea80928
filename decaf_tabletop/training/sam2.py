"""Trains the demo SAM 2 from nothing on clips of the tabletop simulator:

python -m decaf_tabletop.training.sam2 --data CLIPS --out decaf_tabletop/models/tabletop_sam2

CLIPS is a folder that `python -m decaf_tabletop.world.store` fills; it may still grow.
Recipe: decaf_tabletop/README.md.
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
from decaf_ros.segmentation.sam2 import Sam2, load_sam2
from decaf_tabletop.training.clips import validation_clips
from decaf_tabletop.training.cpu import keep_freed_memory
from decaf_tabletop.training.origin import check_origin, digest
from decaf_tabletop.training.sam2_check import clicked, followed
from decaf_tabletop.training.sam2_data import (
    CLICK_AREA,
    ClipPool,
    Pair,
    augmented,
    clicks,
    crossed,
    dense_targets,
    masks_at,
    meeting,
    occluded,
    targets,
    vanished,
)
from decaf_tabletop.training.sam2_losses import Answers, Losses, losses, mask_loss
from decaf_tabletop.training.sam2_model import fresh_model, write_model
from decaf_tabletop.training.sam2_steps import DenseHeads, cheap_attention, click, embed, follow
from decaf_tabletop.world.clip import TabletopClip

# What of the schedule there is to be gone through again with weights that are gone on from.
LAST_PART = 0.4


@dataclass(frozen=True)
class Recipe:
    """minutes: of the whole training; the schedule follows the clock. single: share of the time before the first
    stretches of clips; from then on every other step is of these. frames: of a step on single frames. clips: of a
    step on stretches. rate: highest learning rate. averaging: of the weights that are measured and stored. pool: clips
    in memory.
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
    """The network, its running average, the optimiser and the random numbers: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.model = fresh_model(seed)
        self.heads = DenseHeads()
        self.average = fresh_model(seed).requires_grad_(False)
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        groups = [
            {"params": [one for one in parameters if one.ndim > 1], "weight_decay": 0.02},
            {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))
        self.rng = np.random.default_rng(seed)
        self.step = 0
        self.elapsed_s = 0.0
        self.begun_from = ""

    @property
    def progress(self) -> float:
        """In [0, 1]."""
        return min(1.0, self.elapsed_s / (60 * self.recipe.minutes))

    @property
    def aid(self) -> float:
        """Weight of the losses by heads that are no part of the network."""
        return 0.0 if self.begun_from else 0.5 - 0.4 * self.progress

    def go_on_from(self, model: SAM2Base) -> None:
        """The last part of the schedule, from these weights. Without the aids: their heads are not stored with them."""
        for one in (self.model, self.average):
            one.load_state_dict(model.state_dict())
        self.elapsed_s = (1 - LAST_PART) * 60 * self.recipe.minutes
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
        """Raises ValueError for the state of a training that began elsewhere."""
        check_origin(state, self.begun_from)
        for name in ("model", "heads", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.rng.bit_generator.state = state["rng"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def train(self, pool: ClipPool) -> dict[str, float]:
        """One step; its losses."""
        began = time.monotonic()
        if self.step % 3 == 0:
            pool.exchange(self.rng)
        follows = self.progress >= self.recipe.single and self.step % 2 == 1
        with cheap_attention():
            loss, report = self._clips(pool) if follows else self._frames(pool)
            self._descend(loss)
        self.step += 1
        self.elapsed_s += time.monotonic() - began
        return {"loss": loss.item(), **report}

    def _frames(self, pool: ClipPool) -> tuple[torch.Tensor, dict[str, float]]:
        """Single frames of many clips: two clicks on every object, some beside."""
        pairs = [augmented(pair, self.rng) for pair in pool.frames(self.rng, self.recipe.frames)]
        return self._clicked(torch.cat([pixels for pixels, _ in pairs]), [labels[0] for _, labels in pairs], each=2)

    def _clips(self, pool: ClipPool) -> tuple[torch.Tensor, dict[str, float]]:
        """Stretches of clips: their objects followed from their masks on the first frame; and a click each."""
        late = (self.progress - self.recipe.single) / (1 - self.recipe.single)
        length = int(self.rng.integers(2, 4 + round(5 * min(1.0, 1.5 * late))))
        raw = pool.stretches(self.rng, self.recipe.clips, length)
        away = [
            pair if self.rng.random() < 0.85 else vanished(pair, other, self.rng) for pair, other in zip(raw, raw[1:])
        ]
        away.append(raw[-1])
        raw = [self._hidden(pair, raw[:place] + raw[place + 1 :]) for place, pair in enumerate(away)]
        pairs = [augmented(pair, self.rng) for pair in raw]
        pixels, labels = torch.cat([part for part, _ in pairs]), [image for _, part in pairs for image in part]
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(self.model, pixels)
        loss, report = self._clicked(pixels, labels, each=1, embeddings=embeddings)

        objects = [(clip, one) for clip, (_, part) in enumerate(pairs) for one in _visible(part[0])]
        objects = [objects[place] for place in self.rng.permutation(len(objects))]
        # Objects that others pass in front of, or behind, are the hard ones.
        together = [meeting(part) for _, part in pairs]
        objects = sorted(objects, key=lambda one: one[1] not in together[one[0]])[: self.recipe.most_objects]
        if not objects:
            return loss, report
        clip = torch.tensor([one for one, _ in objects])
        images = [[pairs[one][1][index] for one, _ in objects] for index in range(length)]
        ids = [one for _, one in objects]
        truth = [masks_at(part, ids) for part in images]
        wanted = [targets(part, ids) for part in images]
        told = torch.from_numpy(self.rng.random(len(objects)) < 0.5 * max(0.0, 1 - 2 * late))
        with torch.autocast("cpu", torch.bfloat16):
            answers, tokens = follow(
                self.model,
                [embeddings.of(clip * length + index) for index in range(length)],
                truth[0],
                truth,
                [part.flatten(1).any(1) for part in truth],
                told,
            )
            sketches = [self.heads.sketches(part) for part in tokens]
        parts = [losses(*pair, absent_weight=3) for pair in zip(answers, wanted[1:])]
        # What is remembered of a frame is the mask that was found; told masks teach it from the beginning.
        first = [sum(mask_loss(one, goal) for one in some[:2]) for some, goal in zip(sketches, wanted[1:])]
        first = sum(first) / len(first)
        kept = sum(mask_loss(some[2][told], goal.of(told)) for some, goal in zip(sketches, wanted[1:])) / len(sketches)
        loss = loss + sum(_total(part) for part in parts) / len(parts) + self.aid * (first + kept)
        last = parts[-1]
        more = {"follow_mask": last.mask, "follow_presence": last.presence, "follow_sketch": first, "kept": kept}
        more = {name: float(value.detach()) for name, value in more.items()}
        return loss, {**report, "follow_iou": last.best_iou, **more}

    def _hidden(self, pair: Pair, others: list[Pair]) -> Pair:
        draw = self.rng.random()
        return pair if draw < 0.35 or not others else (occluded if draw < 0.55 else crossed)(pair, others, self.rng)

    def _clicked(
        self, pixels: torch.Tensor, labels: list[np.ndarray], each: int, embeddings: Any = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = clicks(labels, self.rng, each, background=0.6 * each)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(self.model, pixels) if embeddings is None else embeddings
            dense = self.heads(embeddings, *dense_targets(labels))
            answers, tokens = click(self.model, embeddings.of(chosen.frame), chosen.points)
            (sketch,) = self.heads.sketches(tokens)
        several = Answers(answers.logits[:, 1:], answers.iou[:, 1:], answers.object_score)
        single = Answers(answers.logits[:, :1], answers.iou[:, :1], answers.object_score)
        found: Losses = losses(several, chosen.targets)
        also: Losses = losses(single, chosen.targets)
        first = mask_loss(sketch, chosen.targets)
        loss = _total(found) + 0.3 * (also.mask + also.iou) + self.aid * (dense + first)
        report = {"mask": found.mask.item(), "iou_error": found.iou.item(), "presence": found.presence.item()}
        return loss, {**report, "dense": dense.item(), "sketch": first.item(), "click_iou": found.best_iou}

    def _descend(self, loss: torch.Tensor) -> None:
        recipe = self.recipe
        rate = recipe.rate * min(1.0, (self.step + 1) / recipe.warm_up_steps)
        rate *= 0.02 + 0.98 * (1 + np.cos(np.pi * self.progress)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        keep = min(recipe.averaging, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            pairs = list(zip(self.average.parameters(), self.model.parameters()))
            torch._foreach_lerp_([one for one, _ in pairs], [one for _, one in pairs], 1 - keep)


def _total(part: Losses) -> torch.Tensor:
    return part.mask + 2 * part.iou + part.presence


def _visible(labels: np.ndarray) -> list[int]:
    return [int(one) for one in np.unique(labels) if one and (labels == one).sum() >= CLICK_AREA]


def main() -> None:
    from decaf_tabletop.world.store import read_clip

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of clips; it may still grow")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.yaml and model.safetensors")
    parser.add_argument("--validation", type=Path, help="folder of clips to measure on meanwhile")
    parser.add_argument("--work", type=Path, help="folder of checkpoint and log; default: OUT with .training added")
    whole, last = Recipe.minutes, LAST_PART * Recipe.minutes
    parser.add_argument("--minutes", type=float, help=f"default: {whole:.0f}; with --go-on-from {last:.0f}")
    parser.add_argument("--go-on-from", help="folder of a model: the end of the schedule again, from there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    work = arguments.work or arguments.out.with_name(arguments.out.name + ".training")
    work.mkdir(parents=True, exist_ok=True)
    part = LAST_PART if arguments.go_on_from else 1.0
    minutes = arguments.minutes or part * Recipe.minutes
    trainer = Trainer(Recipe(minutes / part), arguments.seed)
    if arguments.go_on_from:
        trainer.go_on_from(load_sam2(Sam2Config(arguments.go_on_from, device="cpu")).model)
    if (work / "checkpoint.pt").exists():
        trainer.restore(torch.load(work / "checkpoint.pt", weights_only=False))
        print(f"{work}: goes on from step {trainer.step}", flush=True)
    run(trainer, read_clip, arguments.data, arguments.validation, work, arguments.out)


def run(
    trainer: Trainer,
    read_clip: Callable[[Path], TabletopClip],
    data: Path,
    validation: Path | None,
    work: Path,
    out: Path,
) -> None:
    """Trains until the recipe's minutes are over, with a checkpoint every two minutes and a measurement every seven;
    then writes the model. A folder with a checkpoint is gone on with.

    Raises FileNotFoundError where a folder has no clips, ValueError for clips with seeds of the other one's range.
    """
    chosen = [read_clip(path) for path in validation_clips(validation)[:24]] if validation else []
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
        if chosen and (trainer.elapsed_s - measured > 420 or trainer.progress == 1):
            measured = trainer.elapsed_s
            sam2 = Sam2(trainer.average, Sam2Config(device="cpu"))
            _log(work, trainer, [{**clicked(sam2, chosen).means(), **followed(sam2, chosen[::4]).means()}])
    # Only now: until then there may be a good model in its place.
    write_model(out, trainer.average)


def _log(work: Path, trainer: Trainer, entries: list[dict[str, float]]) -> None:
    """One line with the means, on the terminal and in log.jsonl."""
    names = sorted({name for entry in entries for name in entry})
    means = {name: float(np.mean([entry[name] for entry in entries if name in entry])) for name in names}
    line = {"step": trainer.step, "minutes": trainer.elapsed_s / 60, **means}
    line = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
    print(" ".join(f"{name}={value}" for name, value in line.items()), flush=True)
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
