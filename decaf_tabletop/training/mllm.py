"""Trains the table's multimodal LLM from nothing.

python -m decaf_tabletop.training.mllm --data CLIPS --out decaf_tabletop/models/tabletop_mllm

CLIPS: a folder that `python -m decaf_tabletop.world.store` filled. Three stages, each resumed where it stopped:
tower (dense targets per visual token), words (short questions on ideal tokens), prompts (the paper's prompts on the
tower's real tokens, and where to look).
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
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast

from decaf_tabletop.training.chat import CHAT_TEMPLATE
from decaf_tabletop.training.clips import training_clips
from decaf_tabletop.training.cpu import in_parallel, keep_freed_memory
from decaf_tabletop.training.mllm_batches import Batch, Writer
from decaf_tabletop.training.mllm_language import LanguageTrainer
from decaf_tabletop.training.mllm_lessons import FRAME_GRID, VIDEO_GRID, image_visual, liveliness, video_visual
from decaf_tabletop.training.mllm_model import new_model, new_tokenizer, write_checkpoint
from decaf_tabletop.training.mllm_pupils import Pupil, pupils_of
from decaf_tabletop.training.mllm_tower import Scenes, TowerTrainer, joined, scenes, whiten_patches
from decaf_tabletop.training.origin import check_origin, digest
from decaf_tabletop.world.store import read_clip

STAGES = ("tower", "words", "prompts")
SAVE_EVERY_S = 90
CHECK_CLIPS = 40  # the first ones of the folder, by name; never trained on
# What of a clip the tower is shown: half of the temporal pairs, for memory, and some single frames; oftener where
# something moves or falls (`liveliness`). Falls are in few pairs: shown no oftener than they come, what falls was taken
# for something else four times in ten.
CLIP_PAIRS, CLIP_FRAMES = 4, 3
# The tower is trained on the first clips, and the language model with the tower's tokens on the last: it is to know
# how far these can be trusted on what the tower has never seen.
TOWER_SHARE, PROMPTS_SHARE = 0.45, 0.55
# Side in tokens of most of the tower's single frames: whole ones take half of the time, and show little but table.
CROP = 6
# Prompts come first with few of the tokens without an object, which is cheaper, and then with all of them.
# At first, where to look counts for less than what to say; then, still with few tokens, the background's question
# learns what not to look at. Going on with a checkpoint has all of them at once, but for that while (--excluding).
THIN, EARLY_LOOKING = 0.25, 0.3
EXCLUDING = 0.4, 0.55
# Highest learning rate of the prompts, and that of going on with a checkpoint (--go-on-from).
RATE, RATE_GOING_ON = 1.5e-3, 7e-4
# Share of right answers at which short questions have done their work.
WORDS_LEARNT = 0.9
WORD_KINDS = ("attribute", "explicit", "motion", "size", "relation", "temporal")


class Log:
    """One JSON line an entry, in FILE and, shorter, on the screen."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, **entry: object) -> None:
        entry = {key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(" ".join(f"{key} {value}" for key, value in entry.items()), file=sys.stderr, flush=True)


class Run:
    """What the stages share: the model, where it is kept, and the clock of a stage."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        given.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(given.seed)
        torch.set_num_threads(given.threads)
        self.rng = np.random.default_rng(given.seed)
        self.tokenizer = new_tokenizer()
        self.model = new_model(self.tokenizer)
        self.begun_from = ""
        if given.go_on_from:
            words = Qwen2TokenizerFast.from_pretrained(given.go_on_from).get_vocab()
            if words != self.tokenizer.get_vocab():
                raise SystemExit(f"{given.go_on_from}: expected a checkpoint with the words of this recipe, got others")
            learnt = Qwen2_5_VLForConditionalGeneration.from_pretrained(given.go_on_from, dtype=torch.float32)
            self.model.load_state_dict(learnt.state_dict())
            self.begun_from = digest(learnt.state_dict())
        self.log = Log(given.work / "log.jsonl")
        clips = training_clips(given.data)[: given.clips]
        if len(clips) <= CHECK_CLIPS:
            raise SystemExit(f"{given.data}: expected more than {CHECK_CLIPS} clips, got {len(clips)}")
        self.clips, self.check_clips = clips[CHECK_CLIPS:], clips[:CHECK_CLIPS]

    def load(self, stage: str, trainer: TowerTrainer | LanguageTrainer) -> tuple[int, float]:
        """Takes up a stage where it stopped, if it has begun: steps done and seconds spent."""
        if not (self.given.work / f"{stage}.pt").exists():
            return 0, 0.0
        state = self.read(stage, trainer)
        self.rng.bit_generator.state = state["rng"]
        return state["step"], state["seconds"]

    def read(self, stage: str, trainer: TowerTrainer | LanguageTrainer) -> dict[str, Any]:
        """What an earlier stage has learnt. Raises FileNotFoundError where it has not begun, ValueError where that was
        with other weights."""
        file = self.given.work / f"{stage}.pt"
        if not file.exists():
            raise FileNotFoundError(f"{file}: expected the state of stage {stage}; run that first, or name its --work")
        state = torch.load(file, weights_only=True)
        check_origin(state, self.begun_from)
        trainer.load_state_dict(state["trainer"])
        return state

    def save(self, stage: str, trainer: TowerTrainer | LanguageTrainer, step: int, seconds: float) -> None:
        file = self.given.work / f"{stage}.pt"
        state = {"trainer": trainer.state_dict(), "step": step, "seconds": seconds, "begun_from": self.begun_from}
        torch.save({**state, "rng": self.rng.bit_generator.state}, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    def is_done(self, stage: str) -> bool:
        return (self.given.work / f"{stage}.done").exists()

    def done(self, stage: str) -> None:
        (self.given.work / f"{stage}.done").touch()


def _rate(peak: float, step: int, part: float) -> float:
    """Warm-up over 100 steps, then a cosine down to a hundredth."""
    return peak * min(1.0, (step + 1) / 100) * max(0.01, (1 + math.cos(math.pi * min(part, 1.0))) / 2)


def train_tower(run: Run) -> None:
    trainer = TowerTrainer(run.model)
    step, spent = run.load("tower", trainer)
    budget = run.given.tower_minutes * 60
    videos, images, lively = _all_scenes(run, run.clips[: round(TOWER_SHARE * len(run.clips))])
    chances = np.array(lively) / sum(lively)
    checks = [joined(parts) for parts in _all_scenes(run, run.check_clips)[:2]]
    run.log(stage="tower", clips=len(videos))
    if not step:
        whiten_patches(run.model, _draw(videos, 400, run.rng, chances))
    started, saved = time.monotonic() - spent, time.monotonic()
    while (seconds := time.monotonic() - started) < budget:
        batch = [_draw(videos, 32, run.rng, chances)]
        if step % 4:
            batch.append(_draw(images, 24, run.rng, chances).cropped(CROP, run.rng))
        else:
            batch.append(_draw(images, 6, run.rng, chances))
        batch = [part.varied(run.rng) for part in batch]
        marks = trainer.step(batch, _rate(1.5e-3, step, seconds / budget))
        step += 1
        if step % 50 == 0:
            run.log(stage="tower", step=step, seconds=int(seconds), **marks)
        if time.monotonic() - saved > SAVE_EVERY_S:
            run.save("tower", trainer, step, seconds)
            saved = time.monotonic()
        if step % 250 == 0:
            for name, scene in zip(("pairs", "frames"), checks):
                run.log(stage="tower", step=step, check=name, **trainer.check(scene))
    run.save("tower", trainer, step, seconds)
    for name, scene in zip(("pairs", "frames"), checks):
        run.log(stage="tower", step=step, check=name, **trainer.check(scene))
    run.done("tower")


def _draw(parts: list[Scenes], count: int, rng: np.random.Generator, chances: np.ndarray) -> Scenes:
    """One image of each of `count` clips."""
    places = rng.choice(len(parts), min(count, len(parts)), replace=False, p=chances)
    return joined([parts[place].some(rng.integers(len(parts[place]), size=1)) for place in places])


def _all_scenes(run: Run, files: list[Path]) -> tuple[list[Scenes], list[Scenes], list[float]]:
    """Of each clip: temporal pairs, single frames, and how lively it is."""
    return tuple(zip(*in_parallel(_clip_scenes, files, run.given.threads)))


def _clip_scenes(file: Path) -> tuple[Scenes, Scenes, float]:
    clip = read_clip(file)
    rng = np.random.default_rng(clip.seed)
    video = video_visual(clip)
    lively = liveliness(video)
    pairs = np.sort(rng.choice(len(lively), CLIP_PAIRS, replace=False, p=lively / lively.sum()))
    of_frames = lively[np.arange(len(clip)) * len(lively) // len(clip)]
    frames = rng.choice(len(clip), CLIP_FRAMES, replace=False, p=of_frames / of_frames.sum())
    singles = scenes(clip, image_visual(clip, frames), FRAME_GRID, np.arange(CLIP_FRAMES))
    return scenes(clip, video, VIDEO_GRID, pairs), singles, float(lively.max())


def train_words(run: Run) -> None:
    """Short questions, few tokens, ideal tokens: the look-up, and nothing else."""
    trainer = LanguageTrainer(run.model, run.tokenizer)
    trainer.start_from_words(run.tokenizer)
    step, spent = run.load("words", trainer)
    pupils = pupils_of(run.clips[:1200], None, run.given.threads)
    writer = Writer(run.tokenizer, CHAT_TEMPLATE)
    started, saved = time.monotonic() - spent, time.monotonic()
    learnt = False
    while not learnt and time.monotonic() - started < run.given.words_minutes * 60:
        visual = ("video", "image")[int(run.rng.random() < 0.4)]
        packs = [pupils[place].pack(run.rng, visual, 4) for place in run.rng.integers(len(pupils), size=32)]
        said, looked = trainer.step(writer.batch(packs, 0.08, run.rng, short=True), _rate(2e-3, step, 0), 0.0)
        step += 1
        seconds = time.monotonic() - started
        if step % 50 == 0:
            learnt = trainer.marks.of(WORD_KINDS) > WORDS_LEARNT
            marks = trainer.marks.line()
            run.log(stage="words", step=step, seconds=int(seconds), said=said, looked=looked, marks=marks)
        if time.monotonic() - saved > SAVE_EVERY_S or learnt:
            run.save("words", trainer, step, seconds)
            saved = time.monotonic()
    run.save("words", trainer, step, time.monotonic() - started)
    if not learnt:
        raise SystemExit(f"the words were not learnt in {step} steps: go on with a larger --words-minutes")
    run.done("words")


def train_prompts(run: Run) -> None:
    """The real prompts on the tower's tokens, with the looking loss."""
    begun = run.given.go_on_from is not None
    tower = TowerTrainer(run.model)
    if not begun:
        run.read("tower", tower)
    trainer = LanguageTrainer(run.model, run.tokenizer)
    step, spent = run.load("prompts", trainer)
    if not (step or begun):
        run.read("words", trainer)
        trainer.new_optimizer()
    share, (excluding_from, thin_until), peak = PROMPTS_SHARE, EXCLUDING, RATE
    if begun:
        share, (excluding_from, thin_until), peak = 1.0, (0.0, run.given.excluding), RATE_GOING_ON
    pupils = pupils_of(run.clips[-round(share * len(run.clips)) :], tower, run.given.threads)
    checks = pupils_of(run.check_clips, tower, run.given.threads)
    run.log(stage="prompts", clips=len(pupils))
    chances = np.sqrt([liveliness(pupil.teacher.visuals["video"]).max() for pupil in pupils])
    chances /= chances.sum()
    writer = Writer(run.tokenizer, CHAT_TEMPLATE)
    budget = run.given.prompts_minutes * 60
    started, saved = time.monotonic() - spent, time.monotonic()
    while (seconds := time.monotonic() - started) < budget:
        thin = seconds < thin_until * budget
        excluding = thin and seconds >= excluding_from * budget
        draw = run.rng.random()
        # Sequences of like length together: a video has twice the tokens of a frame.
        visual, size = ("", 16) if draw < 0.1 else ("video", 10) if draw < 0.6 else ("image", 16)
        # Few clips have falls in them, and what a video is needed for is the hardest.
        chosen = run.rng.choice(len(pupils), 2 * size if thin else size, p=chances)
        packs = [pupils[place].pack(run.rng, visual, 4) for place in chosen]
        rate = _rate(peak, step, seconds / budget)
        written = writer.batch(packs, THIN if thin else 1.0, run.rng)
        looking = run.given.looking * (EARLY_LOOKING if thin and not excluding else 1.0)
        said, looked = trainer.step(written, rate, looking, excluding)
        step += 1
        if step % 50 == 0:
            marks = trainer.marks.line()
            losses = {"said": said, "looked": looked, "excluding": excluding}
            run.log(stage="prompts", step=step, seconds=int(seconds), **losses, marks=marks)
        if time.monotonic() - saved > SAVE_EVERY_S:
            run.save("prompts", trainer, step, seconds)
            saved = time.monotonic()
        if step % 300 == 0:
            run.log(stage="prompts", step=step, check=trainer.check(_exam(checks, writer)))
    run.save("prompts", trainer, step, seconds)
    run.log(stage="prompts", step=step, check=trainer.check(_exam(checks, writer)))
    run.done("prompts")


def _exam(pupils: list[Pupil], writer: Writer) -> Iterator[Batch]:
    """Always the same questions about clips that are not trained on."""
    rng = np.random.default_rng(0)
    for visual in ("video", "image", "video"):
        for at in range(0, len(pupils), 10):
            yield writer.batch([pupil.pack(rng, visual, 4) for pupil in pupils[at : at + 10]], 1.0, rng)


def export(run: Run) -> None:
    if not run.given.go_on_from:
        run.read("tower", TowerTrainer(run.model))
    run.read("prompts", LanguageTrainer(run.model, run.tokenizer))
    write_checkpoint(run.given.out, run.model.eval(), run.tokenizer)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decaf_tabletop.training.mllm", description="Trains the demo multimodal LLM."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of clip_*.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--work", type=Path, default=Path(".training/mllm"), help="folder for states and the log")
    parser.add_argument("--stage", choices=(*STAGES, "export", "all"), default="all")
    parser.add_argument("--clips", type=int, default=9000, help="most clips of the folder that are used")
    parser.add_argument("--tower-minutes", type=float, default=75)
    parser.add_argument("--words-minutes", type=float, default=20, help="at most; it ends when the words are learnt")
    parser.add_argument("--prompts-minutes", type=float, default=150)
    parser.add_argument(
        "--go-on-from",
        type=Path,
        metavar="CHECKPOINT",
        help="with --stage prompts: begin at the weights of a finished checkpoint, and use all clips of the folder, "
        "which should be ones that its tower was not trained on",
    )
    parser.add_argument(
        "--excluding",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --go-on-from: the first part of the time, for which it learns, on few of the tokens, above all what "
        "the background's question excludes; 0 for a checkpoint that does that already; the same again to resume",
    )
    parser.add_argument("--looking", type=float, default=1.0, help="weight of the loss on where to look")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.go_on_from and given.stage != "prompts":
        parser.error(f"--go-on-from: expected --stage prompts, got {given.stage}")
    if given.excluding and not (given.go_on_from and 0 < given.excluding <= 1):
        parser.error(f"--excluding: expected a share up to 1, with --go-on-from, got {given.excluding}")
    keep_freed_memory()
    wanted = STAGES if given.stage == "all" else (given.stage,)
    for stage in wanted:
        run = Run(given)
        if stage == "export":
            break
        if run.is_done(stage):
            run.log(stage=stage, done=f"already; to go on with it, remove {stage}.done from {given.work}")
        else:
            {"tower": train_tower, "words": train_words, "prompts": train_prompts}[stage](run)
    if given.stage in ("all", "export", "prompts"):
        export(Run(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
