"""The paper's tables as data: reads and checks `paper_tables.yaml`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from decaf_ros.evaluation.baselines.registry import DECAF, METHODS

# The scores of a column, in the order of the figures of `published`.
SCORES = ("j_and_f", "j", "f")


@dataclass(frozen=True)
class Column:
    """The measure of a column of a table.

    Attributes:
        text: heading.
        dataset: name as in `decaf eval --dataset`.
        split: its split.
        subset: the subset whose mean is the score; empty: the mean of all subsets.
        masks: `sam`, on all frames, or `attention`, of the map alone on the key frames.
        version: of the data set that the paper's figures are taken to be of; empty if there is one only.
    """

    text: str
    dataset: str
    split: str = ""
    subset: str = ""
    masks: str = "sam"
    version: str = ""

    @property
    def assumed(self) -> str:
        """The assumption about the published figures; empty: none."""
        return f"figures taken to be of version {self.version} of {self.text}" if self.version else ""


@dataclass(frozen=True)
class Model:
    """A multimodal LLM of the tables. checkpoint: hub name. billions: parameters by its name."""

    checkpoint: str
    billions: float


@dataclass(frozen=True)
class Row:
    """A row of a table: a configuration.

    Attributes:
        method: name of the row.
        model: key of `Catalogue.models`, or another name in a row that cannot be run.
        changes: changed parameters by dotted name.
        start: first layer of the rollout as a share of the layers; None: as configured.
        baseline: a key of `decaf_ros.evaluation.baselines.registry.METHODS`.
        similar: whether the scores are of the samples with similar objects only (Tab. 13).
        extra: not in the paper; only measured on a data set that takes the place of the tables' own.
        note: why the row cannot be run; empty if it can.
        figures: the paper's, in per cent, column by column with its scores; None where there is none.
    """

    method: str
    model: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    start: float | None = None
    baseline: str = DECAF
    similar: bool = False
    extra: bool = False
    note: str = ""
    figures: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper, or a part of one.

    Attributes:
        name: such as table4a.
        text: what is compared.
        columns: keys of `Catalogue.columns`.
        scores: some of SCORES, of every column.
        rows: its rows.
        published: whether figures of other methods are shown too.
    """

    name: str
    text: str
    columns: tuple[str, ...]
    scores: tuple[str, ...]
    rows: tuple[Row, ...]
    published: bool = False


@dataclass(frozen=True)
class Published:
    """Figures of another method.

    Attributes:
        method: its name.
        model: its multimodal LLM.
        source: where the figures were read.
        figures: in per cent, by column: (J&F, J, F), or (J&F,).
        split: what is known of the split, where it is not that of the column for sure.
    """

    method: str
    model: str
    source: str
    figures: Mapping[str, tuple[float, ...]]
    split: str = ""


@dataclass(frozen=True)
class Size:
    """Size of a split, for estimates without its data. frames: of a clip, mean. source: where it was read."""

    clips: int
    samples: int
    frames: int
    source: str


@dataclass(frozen=True)
class Catalogue:
    """All tables, by name; columns and models by key; figures of other methods; sizes by data set and split."""

    columns: Mapping[str, Column]
    models: Mapping[str, Model]
    tables: Mapping[str, Table]
    published: Sequence[Published]
    sizes: Mapping[str, Size]

    def named(self, name: str) -> list[Table]:
        """The table, or all parts of it: table4 is table4a, table4b and table4c. Raises ValueError for another name."""
        found = [table for table in self.tables.values() if re.fullmatch(rf"{re.escape(name)}[a-z]?", table.name)]
        if not found:
            raise ValueError(f"expected one of {', '.join(self.tables)}, got {name!r}")
        return found


@functools.lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The catalogue of the paper. Raises ValueError for a row that does not fit its table."""
    return read_catalogue(Path(__file__).with_name("paper_tables.yaml"))


def read_catalogue(file: Path) -> Catalogue:
    """Reads a file of tables. Raises ValueError, naming table and row, for one that does not fit."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    columns = {key: Column(**entry) for key, entry in content["columns"].items()}
    models = {key: Model(**entry) for key, entry in content["models"].items()}
    tables = {name: _table(name, entry, columns, models) for name, entry in content["tables"].items()}
    published = [
        Published(**{**entry, "figures": {key: tuple(values) for key, values in entry["figures"].items()}})
        for entry in content["published"]
    ]
    for one in published:
        if bad := [key for key, values in one.figures.items() if key not in columns or len(values) not in (1, 3)]:
            raise ValueError(
                f"published {one.method}: expected a known column and 1 or 3 figures, got {', '.join(bad)}"
            )
    sizes = {key: Size(**entry) for key, entry in content["sizes"].items()}
    return Catalogue(columns, models, tables, published, sizes)


def _table(name: str, entry: Mapping[str, Any], columns: Mapping[str, Column], models: Mapping[str, Model]) -> Table:
    keys, scores = tuple(entry["columns"]), tuple(entry["scores"])
    unknown_figures = [None] * (len(keys) * len(scores))
    rows = tuple(
        Row(**{**row, "figures": tuple(unknown_figures if row.get("extra") else row["figures"])})
        for row in entry["rows"]
    )
    if unknown := sorted((set(keys) - set(columns)) | (set(scores) - set(SCORES))):
        raise ValueError(f"{name}: expected known columns and scores, got {', '.join(unknown)}")
    for row in rows:
        where = f"{name}, {row.method} with {row.model}"
        if len(row.figures) != len(keys) * len(scores):
            raise ValueError(f"{where}: expected {len(keys) * len(scores)} figures, got {len(row.figures)}")
        if not row.note and row.model not in models:
            raise ValueError(f"{where}: expected one of {', '.join(models)}")
        if row.baseline not in METHODS:
            raise ValueError(f"{where}: expected one of {', '.join(METHODS)}, got {row.baseline!r}")
    return Table(name, entry["text"], keys, scores, rows, entry.get("published", False))
