"""GPU hours of a run, from measured rates.

Measured on one H200 with random weights of the size of Qwen2.5-VL-7B (docs/benchmarks.md, 2026-11-28): a cold window
of 16 key frames of 480x854, a further question about it, and SAM 2.1 Hiera-L with one object. Not measured, and so not
part of it: decoding of the category, candidates on the key frames, SAM 2 in float32, loading. It is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from decaf_ros.evaluation.report import table
from decaf_ros.evaluation.tables.plan import Line, Plan, RunKey

COLD_S, FURTHER_S, FRAMES_PER_S = 1.515, 0.259, 20.0
# Parameters of the measured model, in billions. Other models are taken to need time in proportion to theirs.
MEASURED_BILLIONS = 7.0


def hours(clips: int, samples: int, frames: int, billions: float = MEASURED_BILLIONS) -> float:
    """Hours of one GPU.

    Args:
        clips: number of clips.
        samples: number of expressions about them.
        frames: number of frames to mask: those of a clip count once for each of its expressions.
        billions: parameters of the multimodal LLM.
    """
    grounding = (clips * COLD_S + (samples - clips) * FURTHER_S) * billions / MEASURED_BILLIONS
    return (grounding + frames / FRAMES_PER_S) / 3600


def arithmetic() -> str:
    """The formula with its numbers, in one line."""
    return (
        f"GPU hours = ((clips x {COLD_S} s + (samples - clips) x {FURTHER_S} s) x parameters / "
        f"{MEASURED_BILLIONS:g} billions + frames of all samples / {FRAMES_PER_S:g} a second) / 3600, at the rates "
        "of one H200 (docs/benchmarks.md); a lower bound (docs/scale.md)"
    )


def dry_run(plan: Plan, lines: Sequence[Line]) -> str:
    """The runs of lines with their samples and GPU hours, then what is missing and what cannot be run."""
    rows, total, unknown = [], 0.0, 0
    for key in dict.fromkeys(line.run for line in lines if line.run):
        using = [line for line in lines if line.run == key]
        model = using[0].row.model
        billions = plan.tables.models[model].billions if model in plan.tables.models else MEASURED_BILLIONS
        size, source = _size(plan, key)
        spent = None if size is None else hours(*size, billions)
        total, unknown = total + (spent or 0.0), unknown + (spent is None)
        rows.append(
            (
                f"{key.dataset} {key.split}".strip(),
                model,
                ", ".join(dict.fromkeys(f"{line.table.name}: {line.row.method}" for line in using)),
                *(("?", "?") if size is None else map(str, size[:2])),
                "?" if spent is None else f"{spent:.2f}",
                source,
                "ready" if using[0].ready else "lacks " + ", ".join(text.split(":")[0] for text in using[0].missing),
            )
        )
    parts = []
    if rows:
        parts.append(table(("data", "model", "for", "clips", "samples", "GPU hours", "size from", "state"), rows))
    known = f", without {unknown} runs whose size is not known" if unknown else ""
    parts.append(f"Runs: {len(rows)}. GPU hours: {total:.1f}{known}.\n{arithmetic()}")
    if missing := dict.fromkeys(f"- {text}" for line in lines for text in line.missing):
        parts.append("\n".join(["Missing:", *missing]))
    never = dict.fromkeys(
        f"- {line.table.name}: {line.row.method}, {line.row.model}: {line.note}"
        for line in lines
        if line.run is None and not line.note.startswith("published")
    )
    if never:
        parts.append("\n".join(["Not run:", *never]))
    return "\n\n".join(parts)


def _size(plan: Plan, key: RunKey) -> tuple[tuple[int, int, int] | None, str]:
    """Clips, samples and frames of a run, and where they are from; None if they are not known."""
    try:
        samples = plan.samples(key)
    except ValueError:  # without the data
        size = plan.tables.sizes.get(f"{key.dataset} {key.split}")
        return (None, "-") if size is None else ((size.clips, size.samples, size.samples * size.frames), size.source)
    clips = len({sample.clip for sample in samples})
    return (clips, len(samples), sum(sample.frames for sample in samples)), "the data"
