"""From the rows and columns of tables to the runs that they need: which configuration on which data set, and what is
missing for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.baselines.head_files import find_heads, read_heads
from decaf_ros.evaluation.baselines.registry import DECAF, DECAF_SPEC, METHODS, MethodSpec
from decaf_ros.evaluation.datasets.clips import Dataset, ExpressionChoice
from decaf_ros.evaluation.datasets.registry import Selection, find_source
from decaf_ros.evaluation.tables.catalogue import Catalogue, Column, Row, Table
from decaf_ros.evaluation.tables.samples import Sample, samples_of
from decaf_ros.hub import cached_folder
from decaf_ros.resources import resolve_path
from decaf_ros.weights.folders import check_folder


@dataclass(frozen=True)
class Given:
    """Data and models, as the command line names them.

    Attributes:
        data: folder with a folder for each data set, named as in `decaf eval --dataset`; with `dataset` the folder of
            that one; None: the data set's own clips.
        models: folder with the checkpoints; None: those of the hub's cache on this machine.
        dataset: data set that takes the place of the tables' own; empty: none does.
        split: split of `dataset`; empty: its default.
        clips: number of clips of a data set; None: its default, all of a benchmark.
        own_model: whether one multimodal LLM, that of the configuration, takes the place of the tables' models.
        limit: number of samples of each data set; None: all.
        present_per_clip: number of expressions asked about a clip if not all are.
        heads: file or folder with localization heads, see `MethodSpec`.
        similar: samples with similar objects, CLIP/EXPRESSION; None: as the data set tells them, if it does.
    """

    data: Path | None = None
    models: Path | None = None
    dataset: str = ""
    split: str = ""
    clips: int | None = None
    own_model: bool = False
    limit: int | None = None
    present_per_clip: int = 3
    heads: Path | None = None
    similar: frozenset[str] | None = None

    @property
    def part(self) -> str:
        """Which part of each data set is measured; empty: all of it."""
        limits = ((self.clips, "clips"), (self.limit, "samples"))
        return ", ".join(f"first {count} {name}" for count, name in limits if count is not None)


class RunKey(NamedTuple):
    """One configuration on one split: what a cell of a table needs. The same cell of two tables is one run."""

    dataset: str
    split: str
    config: DecafConfig
    start: float | None
    method: MethodSpec = DECAF_SPEC


@dataclass(frozen=True)
class Line:
    """One row of a table on one data set.

    Attributes:
        table: the table.
        row: the row; with `Given.own_model` its model is the checkpoint's name.
        column: the column.
        figures: published figures, in per cent, by score; empty without any.
        run: what has to be run; None if nothing has.
        missing: models and data that the run lacks.
        note: what else is to be said; empty: nothing.
        only: keys of the samples whose scores count; None: all of the run.
    """

    table: Table
    row: Row
    column: Column
    figures: Mapping[str, float | None] = field(default_factory=dict)
    run: RunKey | None = None
    missing: tuple[str, ...] = ()
    note: str = ""
    only: frozenset[str] | None = None

    @property
    def ready(self) -> RunKey | None:
        """The run, if nothing is missing for it."""
        return None if self.missing else self.run


class Plan:
    """Finds what tables need. Opens each data set and looks for each checkpoint once.

    base: configuration that the rows change. Raises ValueError, from `lines`, for a change that it does not have.
    """

    def __init__(self, tables: Catalogue, base: DecafConfig, given: Given) -> None:
        self.tables, self.given = tables, given
        self._base = base
        self._datasets: dict[tuple[str, str], Dataset | str] = {}
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        self._checkpoints: dict[str, str] = {}

    def lines(self, table: Table) -> list[Line]:
        """The lines of a table in its order, with those of other methods at the end."""
        lines, rows = [], set()
        for row in table.rows:
            if row.extra and not self.given.dataset:
                continue
            figures = self._figures(table, row)
            if self.given.own_model and self._is_run(row):
                row = dataclasses.replace(row, model=Path(self._base.mllm.checkpoint).name, note="")
            told = repr((row.method, row.baseline, row.model, row.changes, row.start, row.similar, row.note))
            if told in rows:
                continue
            rows.add(told)
            for key, column in self._columns(table):
                lines.append(self._line(table, row, column, figures.get(key, {})))
        if table.published and not self.given.dataset:
            for one in self.tables.published:
                for key in table.columns:
                    if key in one.figures:
                        column = self.tables.columns[key]
                        about = (one.split or column.assumed) if column.version else ""
                        note = f"published ({one.source}{'; ' + about if about else ''})"
                        found = dict(zip(table.scores, one.figures[key]))
                        row = Row(one.method, one.model, note=note)
                        lines.append(Line(table, row, column, found, note=note))
        return lines

    def dataset(self, key: RunKey) -> Dataset:
        """The data set of a run from `lines`. Raises ValueError if it is missing."""
        found = self._dataset(key.dataset, key.split)
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def samples(self, key: RunKey) -> list[Sample]:
        """The samples of a run, up to the limit. Raises what `Dataset.clip` raises."""
        named = key.dataset, key.split
        if named not in self._samples:
            every = find_source(key.dataset).every_expression
            choice = ExpressionChoice(0, None if every else self.given.present_per_clip)
            listed: list[Sample] = []
            for sample in samples_of(self.dataset(key), 0, choice):
                if self.given.limit is not None and len(listed) >= self.given.limit:
                    break
                listed.append(sample)
            self._samples[named] = listed
        return self._samples[named]

    def _is_run(self, row: Row) -> bool:
        """Whether the row can be run: as it is, or a baseline with the own model in place of one that is not here."""
        no_model = row.baseline != DECAF and row.model not in self.tables.models
        return not row.note or (self.given.own_model and no_model)

    def _columns(self, table: Table) -> list[tuple[str, Column]]:
        columns = [(key, self.tables.columns[key]) for key in table.columns]
        if not self.given.dataset:
            return columns
        text = f"{self.given.dataset} {self.given.split}".strip()
        kinds = dict.fromkeys(column.masks for _, column in columns)
        return [("", Column(text, self.given.dataset, self.given.split, masks=masks)) for masks in kinds]

    def _figures(self, table: Table, row: Row) -> dict[str, dict[str, float | None]]:
        """The paper's figures by column and score. They are of its data sets and models."""
        if self.given.dataset or (self.given.own_model and self._is_run(row)):
            return {}
        count = len(table.scores)
        return {
            key: dict(zip(table.scores, row.figures[count * place : count * (place + 1)]))
            for place, key in enumerate(table.columns)
        }

    def _line(self, table: Table, row: Row, column: Column, figures: Mapping[str, float | None]) -> Line:
        if row.note:
            return Line(table, row, column, figures, note=row.note)
        changes = dict(row.changes)
        missing = []
        if not self.given.own_model:
            changes["mllm.checkpoint"] = self.tables.models[row.model].checkpoint
        config = replace(self._base, changes)
        for stage, name in (("mllm", config.mllm.checkpoint), ("sam2", config.sam2.checkpoint)):
            path, fault = self._checkpoint(name)
            missing += [f"model {name}: {fault}"] if fault else []
            config = replace(config, {f"{stage}.checkpoint": path, f"{stage}.local_files_only": True})
        found = self._dataset(column.dataset, column.split)
        missing += [f"data {column.dataset}: {found}"] if isinstance(found, str) else []
        method, fault = self._method(row, name=Path(changes.get("mllm.checkpoint", self._base.mllm.checkpoint)).name)
        missing += [fault] if fault else []
        key = RunKey(column.dataset, column.split, config, row.start, method)
        got = "" if isinstance(found, str) else found.settings.get("version", "unknown")
        other = ""
        if column.version and got not in ("", column.version):
            other = f"version of the data: {got}, so no difference is shown"
        note = "; ".join(filter(None, (self.given.part, other)))
        only = self._similar(key) if row.similar and not missing else None
        if row.similar and not missing and only is None:
            told = "the paper does not list the 187 samples of the subset, nor do these data tell similar objects"
            return Line(table, row, column, figures, note=f"{told}; --similar FILE names the samples")
        return Line(table, row, column, figures, key, tuple(missing), note, only)

    def _similar(self, key: RunKey) -> frozenset[str] | None:
        """Keys of a run's samples with similar objects; None if nothing tells them.

        Raises ValueError for a listed sample that the data set does not have.
        """
        samples = self.samples(key)
        if self.given.similar is None:
            told = any(sample.similar is not None for sample in samples)
            return frozenset(sample.key for sample in samples if sample.similar) if told else None
        found = {sample.listed_as: sample.key for sample in samples if sample.listed_as in self.given.similar}
        if not self.given.part and (unknown := sorted(self.given.similar - found.keys())):
            known = samples[0].listed_as if samples else "CLIP/EXPRESSION"
            raise ValueError(f"--similar: expected samples of {key.dataset}, such as {known}, got {unknown[0]}")
        return frozenset(found.values())

    def _method(self, row: Row, name: str) -> tuple[MethodSpec, str]:
        """The row's method, and what it lacks; empty if it lacks nothing. name: of the model."""
        if not METHODS[row.baseline].needs_heads:
            return MethodSpec(row.baseline), ""
        checkpoint = self._base.mllm.checkpoint if self.given.own_model else self.tables.models[row.model].checkpoint
        path = Path(self._checkpoint(checkpoint)[0])
        if self.given.heads is None and not path.exists():
            return MethodSpec(row.baseline), ""  # the model is missing, and told
        file = find_heads(self.given.heads, path if self.given.heads is None else path.with_name(name))
        try:
            read_heads(file)
        except (OSError, ValueError) as error:
            return MethodSpec(row.baseline, file), f"heads of {name}: {error}"
        return MethodSpec(row.baseline, file), ""

    def _dataset(self, name: str, split: str) -> Dataset | str:
        """The data set, or what is missing."""
        if (name, split) not in self._datasets:
            folder = self.given.data
            if not self.given.dataset:
                if folder is None:
                    return f"expected --data DIR with the folder DIR/{name}"
                folder = folder / name
            selection = Selection(count=self.given.clips, folder=folder, split=split)
            try:
                self._datasets[name, split] = find_source(name).select(selection)
            except (OSError, ValueError) as error:
                self._datasets[name, split] = str(error)
        return self._datasets[name, split]

    def _checkpoint(self, name: str) -> tuple[str, str]:
        """The path of a checkpoint, and what is wrong with it; empty if nothing is."""
        if name not in self._checkpoints:
            self._checkpoints[name] = str(self._find(name) or "")
        path = self._checkpoints[name]
        if not path:
            where = f"not in {self.given.models}" if self.given.models else "not in the hub's cache on this machine"
            advice = f"decaf weights get {name} --to {self.given.models or 'DIR'}"
            return name, f"{where}; {advice}{'' if self.given.models else ' and --models DIR'}"
        faults = check_folder(Path(path), checksums=False) if Path(path).is_dir() else []
        return path, faults[0] if faults else ""

    def _find(self, name: str) -> Path | None:
        """A path as it is; a hub name in the folder of models, with or without its owner, or in the hub's cache."""
        path = Path(resolve_path(name))
        if path.exists():
            return path.resolve()
        if self.given.models is None:
            return cached_folder(name)
        places = (self.given.models / name, self.given.models / Path(name).name)
        return next((place.resolve() for place in places if place.is_dir()), None)
