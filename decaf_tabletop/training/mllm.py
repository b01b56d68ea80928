"""Trains the table's multimodal LLM.

python -m decaf_tabletop.training.mllm --data CLIPS --out decaf_tabletop/models/tabletop_mllm

CLIPS: a folder written by `python -m decaf_tabletop.world.store`. Three stages, each resumed where it stopped: tower
(dense targets per visual token), words (short questions on ideal tokens), prompts (the paper's prompts on the tower's
tokens, with the attention loss). Recipe and limits: decaf_tabletop/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decaf_tabletop.training.chat import CHAT_TEMPLATE
from decaf_tabletop.training.clips import training_clips
from decaf_tabletop.training.cpu import keep_freed_memory, parallel_map
from decaf_tabletop.training.mllm_batches import Batch, Pack, Writer
from decaf_tabletop.training.mllm_clips import EncodedClip, encode_clips
from decaf_tabletop.training.mllm_examples import FRAME_GRID, VIDEO_GRID, image_visual, motion_weights, video_visual
from decaf_tabletop.training.mllm_language import LanguageTrainer
from decaf_tabletop.training.mllm_model import new_model, new_tokenizer, start_from, write_checkpoint
from decaf_tabletop.training.mllm_tower import Scenes, TowerTrainer, concatenated, scenes, whiten_patches
from decaf_tabletop.training.origin import check_origin, digest
from decaf_tabletop.world.store import read_clip

STAGES = ("tower", "words", "prompts")
SAVE_EVERY_S = 90
QUESTIONS = 5  # in one sequence
CHECK_CLIPS = 40  # the first of the folder, by name; never trained on
# Temporal pairs and single frames of a clip in the tower's training, drawn by `motion_weights`. Half of the pairs, to
# save memory.
PAIRS_PER_CLIP, FRAMES_PER_CLIP = 4, 3
# The tower trains on the first clips, the prompts on the last: the language model learns how reliable the tower's
# tokens are on clips the tower has not seen.
TOWER_SHARE, PROMPTS_SHARE = 0.45, 0.55
# Side in tokens of the crops that replace most single frames. Whole frames show mostly table, and took half the time.
CROP_TOKENS = 6
# Prompts start with this share of the background tokens, which is cheaper, and a lower weight of the attention loss.
# Within EXCLUDING_SPAN of the time, still with few tokens, the background question learns to exclude a category; then
# all tokens are kept. Training on from a checkpoint keeps all tokens at once, except during --excluding.
KEPT_BACKGROUND, EARLY_ATTENTION_WEIGHT = 0.25, 0.3
EXCLUDING_SPAN = 0.4, 0.55
# Peak learning rate of the tower and of the prompts, and with --go-on-from.
PEAK_RATE, PEAK_RATE_GOING_ON = 1.5e-3, 7e-4
# Share of the prompts' batches about videos with a marked object (`segmentation.verify`).
MARKED_SHARE = 0.15
# The words stage ends when every kind reaches this accuracy.
WORDS_ACCURACY = 0.9
WORD_KINDS = ("attribute", "explicit", "motion", "size", "relation", "temporal")


class Log:
    """Appends each entry to FILE as a JSON line, and prints it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, **entry: object) -> None:
        entry = {key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(" ".join(f"{key} {value}" for key, value in entry.items()), file=sys.stderr, flush=True)


class Run:
    """State shared by the stages: options, model, clips, and the files of each stage."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self.rng = np.random.default_rng(options.seed)
        self.tokenizer = new_tokenizer()
        self.model = new_model(self.tokenizer)
        self.begun_from = ""
        if options.go_on_from:
            start_from(self.model, self.tokenizer, options.go_on_from)
            self.begun_from = digest(self.model.state_dict())
        self.log = Log(options.work / "log.jsonl")
        clips = training_clips(options.data)[: options.clips]
        if len(clips) <= CHECK_CLIPS:
            raise SystemExit(f"{options.data}: expected more than {CHECK_CLIPS} clips, got {len(clips)}")
        self.clips, self.check_clips = clips[CHECK_CLIPS:], clips[:CHECK_CLIPS]

    def resume(self, stage: str, trainer: TowerTrainer | LanguageTrainer) -> tuple[int, float]:
        """Restores a stage that has begun, with the generator's state; returns steps done and seconds spent."""
        if not (self.options.work / f"{stage}.pt").exists():
            return 0, 0.0
        state = self.restore(stage, trainer)
        self.rng.bit_generator.state = state["rng"]
        return state["step"], state["seconds"]

    def restore(self, stage: str, trainer: TowerTrainer | LanguageTrainer) -> dict[str, Any]:
        """Restores the trainer of a stage; returns the whole state.

        Raises FileNotFoundError if the stage has not begun, ValueError if it began from other weights.
        """
        file = self.options.work / f"{stage}.pt"
        if not file.exists():
            raise FileNotFoundError(f"{file}: expected the state of stage {stage}; run it first, or pass its --work")
        state = torch.load(file, weights_only=True)
        check_origin(state, self.begun_from)
        trainer.load_state_dict(state["trainer"])
        return state

    def save(self, stage: str, trainer: TowerTrainer | LanguageTrainer, step: int, seconds: float) -> None:
        file = self.options.work / f"{stage}.pt"
        state = {"trainer": trainer.state_dict(), "step": step, "seconds": seconds, "begun_from": self.begun_from}
        torch.save({**state, "rng": self.rng.bit_generator.state}, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    def is_done(self, stage: str) -> bool:
        return (self.options.work / f"{stage}.done").exists()

    def mark_done(self, stage: str) -> None:
        (self.options.work / f"{stage}.done").touch()


def _learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up over 100 steps, and a cosine over `progress` in [0, 1] down to a hundredth."""
    return peak * min(1.0, (step + 1) / 100) * max(0.01, (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def train_tower(run: Run) -> None:
    going_on = run.options.go_on_from is not None
    share, peak = (1.0, PEAK_RATE_GOING_ON) if going_on else (TOWER_SHARE, PEAK_RATE)
    trainer = TowerTrainer(run.model)
    step, spent = run.resume("tower", trainer)
    budget = run.options.tower_minutes * 60
    videos, images, weights = _all_scenes(run, run.clips[: round(share * len(run.clips))])
    probabilities = np.array(weights) / sum(weights)
    checks = [concatenated(parts) for parts in _all_scenes(run, run.check_clips)[:2]]
    run.log(stage="tower", clips=len(videos))
    if not (step or going_on):
        whiten_patches(run.model, _draw(videos, 400, run.rng, probabilities))
    started, saved = time.monotonic() - spent, time.monotonic()
    while (seconds := time.monotonic() - started) < budget:
        batch = [_draw(videos, 32, run.rng, probabilities)]
        if step % 4:
            batch.append(_draw(images, 24, run.rng, probabilities).cropped(CROP_TOKENS, run.rng))
        else:
            batch.append(_draw(images, 6, run.rng, probabilities))
        batch = [scene.augmented(run.rng) for scene in batch]
        scores = trainer.step(batch, _learning_rate(peak, step, seconds / budget))
        step += 1
        if step % 50 == 0:
            run.log(stage="tower", step=step, seconds=int(seconds), **scores)
        if time.monotonic() - saved > SAVE_EVERY_S:
            run.save("tower", trainer, step, seconds)
            saved = time.monotonic()
        if step % 250 == 0:
            for name, scene in zip(("pairs", "frames"), checks):
                run.log(stage="tower", step=step, check=name, **trainer.check(scene))
    run.save("tower", trainer, step, seconds)
    for name, scene in zip(("pairs", "frames"), checks):
        run.log(stage="tower", step=step, check=name, **trainer.check(scene))
    run.mark_done("tower")


def _draw(clips: list[Scenes], count: int, rng: np.random.Generator, probabilities: np.ndarray) -> Scenes:
    """One image from each of `count` clips, drawn with these probabilities."""
    chosen = rng.choice(len(clips), min(count, len(clips)), replace=False, p=probabilities)
    return concatenated([clips[index].select(rng.integers(len(clips[index]), size=1)) for index in chosen])


def _all_scenes(run: Run, files: list[Path]) -> tuple[list[Scenes], list[Scenes], list[float]]:
    """For each clip: temporal pairs, single frames, and its largest motion weight."""
    return tuple(zip(*parallel_map(_clip_scenes, files, run.options.threads)))


def _clip_scenes(file: Path) -> tuple[Scenes, Scenes, float]:
    clip = read_clip(file)
    rng = np.random.default_rng(clip.seed)
    video = video_visual(clip)
    weights = motion_weights(video)
    pairs = np.sort(rng.choice(len(weights), PAIRS_PER_CLIP, replace=False, p=weights / weights.sum()))
    frame_weights = weights[np.arange(len(clip)) * len(weights) // len(clip)]
    frames = rng.choice(len(clip), FRAMES_PER_CLIP, replace=False, p=frame_weights / frame_weights.sum())
    singles = scenes(clip, image_visual(clip, frames), FRAME_GRID, np.arange(FRAMES_PER_CLIP))
    return scenes(clip, video, VIDEO_GRID, pairs), singles, float(weights.max())


def train_words(run: Run) -> None:
    """Short questions on few, ideal tokens: teaches the look-up alone."""
    trainer = LanguageTrainer(run.model, run.tokenizer)
    trainer.start_from_words(run.tokenizer)
    step, spent = run.resume("words", trainer)
    clips = encode_clips(run.clips[:1200], None, run.options.threads)
    writer = Writer(run.tokenizer, CHAT_TEMPLATE)
    started, saved = time.monotonic() - spent, time.monotonic()
    learnt = False
    while not learnt and time.monotonic() - started < run.options.words_minutes * 60:
        visual = ("video", "image")[int(run.rng.random() < 0.4)]
        packs = [clips[index].pack(run.rng, visual, QUESTIONS) for index in run.rng.integers(len(clips), size=32)]
        batch = writer.batch(packs, 0.08, run.rng, short=True)
        answer_loss, attention_loss = trainer.step(batch, _learning_rate(2e-3, step, 0), 0.0)
        step += 1
        seconds = time.monotonic() - started
        if step % 50 == 0:
            learnt = trainer.scores.worst_accuracy(WORD_KINDS) > WORDS_ACCURACY
            scores = trainer.scores.line()
            losses = {"said": answer_loss, "looked": attention_loss}
            run.log(stage="words", step=step, seconds=int(seconds), **losses, marks=scores)
        if time.monotonic() - saved > SAVE_EVERY_S or learnt:
            run.save("words", trainer, step, seconds)
            saved = time.monotonic()
    run.save("words", trainer, step, time.monotonic() - started)
    if not learnt:
        raise SystemExit(f"the words were not learnt in {step} steps: resume with a larger --words-minutes")
    run.mark_done("words")


def train_prompts(run: Run) -> None:
    """The paper's prompts on the tower's tokens, with the attention loss."""
    going_on = run.options.go_on_from is not None
    tower = TowerTrainer(run.model)
    if not going_on:
        run.restore("tower", tower)
    trainer = LanguageTrainer(run.model, run.tokenizer)
    step, spent = run.resume("prompts", trainer)
    if not (step or going_on):
        run.restore("words", trainer)
        trainer.new_optimizer()
    share, (excluding_from, thin_until), peak = PROMPTS_SHARE, EXCLUDING_SPAN, PEAK_RATE
    if going_on:
        share, (excluding_from, thin_until), peak = 1.0, (0.0, run.options.excluding), run.options.rate
    clips = encode_clips(run.clips[-round(share * len(run.clips)) :], tower, run.options.threads)
    checks = encode_clips(run.check_clips, tower, run.options.threads)
    run.log(stage="prompts", clips=len(clips))
    probabilities = np.sqrt([motion_weights(clip.sampler.visuals["video"]).max() for clip in clips])
    probabilities /= probabilities.sum()
    writer = Writer(run.tokenizer, CHAT_TEMPLATE)
    budget = run.options.prompts_minutes * 60
    started, saved = time.monotonic() - spent, time.monotonic()
    while (seconds := time.monotonic() - started) < budget:
        thin = seconds < thin_until * budget
        excluding = thin and seconds >= excluding_from * budget
        packs = _draw_packs(run, clips, probabilities, thin)
        rate = _learning_rate(peak, step, seconds / budget)
        batch = writer.batch(packs, KEPT_BACKGROUND if thin else 1.0, run.rng)
        attention_weight = run.options.looking * (EARLY_ATTENTION_WEIGHT if thin and not excluding else 1.0)
        answer_loss, attention_loss = trainer.step(batch, rate, attention_weight, excluding)
        step += 1
        if step % 50 == 0:
            scores = trainer.scores.line()
            losses = {"said": answer_loss, "looked": attention_loss, "excluding": excluding}
            run.log(stage="prompts", step=step, seconds=int(seconds), **losses, marks=scores)
        if time.monotonic() - saved > SAVE_EVERY_S:
            run.save("prompts", trainer, step, seconds)
            saved = time.monotonic()
        if step % 300 == 0:
            run.log(stage="prompts", step=step, check=trainer.check(_check_batches(checks, writer)))
    run.save("prompts", trainer, step, seconds)
    run.log(stage="prompts", step=step, check=trainer.check(_check_batches(checks, writer)))
    run.mark_done("prompts")


def _draw_packs(run: Run, clips: list[EncodedClip], probabilities: np.ndarray, thin: bool) -> list[Pack]:
    """Questions for one batch, about clips drawn with these probabilities. thin: twice as many, on few tokens.

    One visual per batch, for sequences of similar length: a video has twice the tokens of a frame. The probabilities
    favour clips with motion and falls: falls are rare, and questions that need the video are the hardest.
    """
    if run.rng.random() < run.options.marked:
        chosen = run.rng.choice(len(clips), 20 if thin else 10, p=probabilities)
        return [clips[index].marked_pack(run.rng, QUESTIONS) for index in chosen]
    draw = run.rng.random()
    visual, size = ("", 16) if draw < 0.1 else ("video", 10) if draw < 0.6 else ("image", 16)
    chosen = run.rng.choice(len(clips), 2 * size if thin else size, p=probabilities)
    return [clips[index].pack(run.rng, visual, QUESTIONS) for index in chosen]


def _check_batches(clips: list[EncodedClip], writer: Writer) -> Iterator[Batch]:
    """The same questions about held-out clips at every call."""
    rng = np.random.default_rng(0)
    for visual in ("video", "image", "video", "marked", "marked"):
        for at in range(0, len(clips), 10):
            group = clips[at : at + 10]
            if visual == "marked":
                yield writer.batch([clip.marked_pack(rng, QUESTIONS) for clip in group], 1.0, rng)
            else:
                yield writer.batch([clip.pack(rng, visual, QUESTIONS) for clip in group], 1.0, rng)


def export(run: Run) -> None:
    """Writes the checkpoint: what both stages have trained, or, going on, what the one that ran has."""
    going_on = run.options.go_on_from is not None
    if not going_on or run.options.stage == "tower":
        run.restore("tower", TowerTrainer(run.model))
    if not going_on or run.options.stage == "prompts":
        run.restore("prompts", LanguageTrainer(run.model, run.tokenizer))
    write_checkpoint(run.options.out, run.model.eval(), run.tokenizer)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decaf_tabletop.training.mllm", description="Trains the table's multimodal LLM."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of clip_*.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--work", type=Path, default=Path(".training/mllm"), help="folder for states and the log")
    parser.add_argument("--stage", choices=(*STAGES, "export", "all"), default="all")
    parser.add_argument("--clips", type=int, default=11000, help="maximum number of clips that are used")
    parser.add_argument("--tower-minutes", type=float, default=75)
    parser.add_argument("--words-minutes", type=float, default=20, help="at most; ends when the words are learnt")
    parser.add_argument("--prompts-minutes", type=float, default=150)
    parser.add_argument(
        "--go-on-from",
        type=Path,
        metavar="CHECKPOINT",
        help="with --stage tower or prompts: start from the weights of a finished checkpoint, on all clips of the "
        "folder; for the prompts its tower should not have been trained on them",
    )
    parser.add_argument(
        "--excluding",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --go-on-from: first share of the time, mainly for teaching the background question to exclude a "
        "category, on few tokens; 0 for a checkpoint that does so already; pass the same value to resume",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=PEAK_RATE_GOING_ON,
        help="with --stage prompts and --go-on-from: peak learning rate (%(default)s)",
    )
    parser.add_argument(
        "--marked",
        type=float,
        default=MARKED_SHARE,
        metavar="SHARE",
        help="share of the prompts' batches that ask whether the marked object is meant (%(default)s)",
    )
    parser.add_argument("--looking", type=float, default=1.0, help="weight of the attention loss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.go_on_from and options.stage not in ("tower", "prompts"):
        parser.error(f"--go-on-from: expected --stage tower or prompts, got {options.stage}")
    if options.excluding and not (options.go_on_from and options.stage == "prompts" and 0 < options.excluding <= 1):
        parser.error(
            f"--excluding: expected a share up to 1, with --stage prompts and --go-on-from, got {options.excluding}"
        )
    keep_freed_memory()
    stages = STAGES if options.stage == "all" else (options.stage,)
    for stage in stages:
        run = Run(options)
        if stage == "export":
            break
        if run.is_done(stage):
            run.log(stage=stage, done=f"already; to continue it, remove {stage}.done from {options.work}")
        else:
            {"tower": train_tower, "words": train_words, "prompts": train_prompts}[stage](run)
    if options.stage in ("all", "export", "prompts") or options.go_on_from:
        export(Run(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
