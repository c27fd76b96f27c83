"""A bounded look at the rows: duplicates between splits, telling and outlying columns, and examples.

It is taken block by block and merged; what it holds does not grow with the rows. Depends on columns alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict

from shoal.data.packing import is_ragged
from shoal.data.preprocessing import Column
from shoal.data.sampler import SPLITS, TRAIN, count_splits, mix
from shoal.data.sketch import smallest
from shoal.data.sources.base import Block

HASHED_ELEMENTS = 1024  # of a row's tensor, evenly spread
HASHED_AT_ONCE = 1 << 20  # numbers
ENOUGH_COLUMNS = 3  # of numbers, to tell rows apart by
KEPT_HASHES = 4096  # of the rows of a split: those with the smallest hashes, the same rows in every split
BLOCK_ROWS = 512  # that are kept of a block
MOST_ROWS = 4096  # that are kept in all
EXAMPLES = 3
FEW_VALUES = 16  # of which rows with the same value are compared
SUSPICIOUS = 0.995  # accuracy of one column alone
MOSTLY_DIFFERENT = 0.98  # of the training rows; else the same values come up by chance
TEXTS = "OUS"  # kinds of columns that hold no numbers, or not only
FEW_ROWS = 50  # too few to suspect anything
NARROW, FAR = 0.1, 1.0  # standard deviations: of nearly all values, and of one that is far from them


class Duplicates(BaseModel):
    """Rows of a held-out split that are training rows too.

    Attributes:
        share: of the rows of `split`, estimated.
    """

    model_config = ConfigDict(frozen=True)
    split: str
    share: float


class Suspect(BaseModel):
    """A column that alone predicts the label on rows that its rule was not made from.

    Attributes:
        score: accuracy, or the share of the variance of a number.
    """

    model_config = ConfigDict(frozen=True)
    column: str
    score: float


class Outlying(BaseModel):
    """A column of numbers of which a few are so far from the others that these become nearly one number.

    Attributes:
        width: of 98% of the values, without the farthest one, in standard deviations of all.
        value: one that is far from them, where it was seen.
    """

    model_config = ConfigDict(frozen=True)
    column: str
    width: float
    value: str | None


@dataclass
class Glance:
    """What was looked at.

    Attributes:
        counts: rows by split.
        hashes: by split, the smallest hashes of rows without their label.
        rows: some training rows, columns [n, ...].
    """

    counts: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, np.ndarray] = field(default_factory=dict)
    rows: Block = field(default_factory=dict)

    @classmethod
    def of(cls, block: Block, split: np.ndarray, label: str | None) -> "Glance":
        found = _row_hashes({name: column for name, column in block.items() if name != label}, len(split))
        hashes = {name: smallest(found[split == number], KEPT_HASHES) for number, name in enumerate(SPLITS)}
        train = np.flatnonzero(split == SPLITS.index(TRAIN))
        some = train[:: max(1, len(train) // BLOCK_ROWS)][:BLOCK_ROWS]
        return cls(
            count_splits(split),
            hashes,
            {
                name: column[some]
                for name, column in block.items()
                if _is_small(column) and not is_ragged(column)
            },
        )

    def merge(self, other: "Glance") -> "Glance":
        hashes = {
            name: smallest(np.concatenate([self.hashes[name], other.hashes[name]]), KEPT_HASHES)
            for name in SPLITS
        }
        counts = {name: self.counts[name] + other.counts[name] for name in SPLITS}
        count = len(next(iter(self.rows.values()), ()))
        if count >= MOST_ROWS or _shapes(self.rows) != _shapes(other.rows):
            return Glance(counts, hashes, self.rows)
        rows = {name: np.concatenate([column, other.rows[name]]) for name, column in self.rows.items()}
        return Glance(counts, hashes, rows)

    def duplicates(self) -> list[Duplicates]:
        """Return the splits of which rows are in the training split too; none where training rows repeat anyway."""
        found: list[Duplicates] = []
        train = self.hashes.get(TRAIN, np.empty(0, np.uint64))
        if len(train) < MOSTLY_DIFFERENT * min(self.counts.get(TRAIN, 0), KEPT_HASHES):
            return found
        for name in SPLITS:
            rows = self.hashes.get(name, train[:0])
            if name == TRAIN or not len(rows) or not len(train):
                continue
            # Below both bounds the hashes of both splits are complete.
            bound = min([one[-1] for one in (rows, train) if len(one) == KEPT_HASHES], default=None)
            shown = rows if bound is None else rows[rows <= bound]
            share = float(np.isin(shown, train).mean()) if len(shown) else 0.0
            if share:
                found.append(Duplicates(split=name, share=share))
        return found

    def suspects(self, label: str | None, is_classification: bool) -> list[Suspect]:
        """Return the columns that alone predict the label better than `SUSPICIOUS`, the best first."""
        if label is None or label not in self.rows or len(self.rows[label]) < FEW_ROWS:
            return []
        targets = self.rows[label].reshape(len(self.rows[label]))
        found = []
        for name, column in self.rows.items():
            if name == label or column.ndim > 1:
                continue
            score = _score_alone(column, targets, is_classification)
            if score >= SUSPICIOUS:
                found.append(Suspect(column=name, score=score))
        return sorted(found, key=lambda suspect: -suspect.score)

    def outlying(self, columns: Sequence[Column]) -> list[Outlying]:
        """Return the columns in which a few values leave no room for the others once they are standardized."""
        found = []
        for column in columns:
            if column.kind != "number" or len(self.rows.get(column.name, ())) < FEW_ROWS:
                continue
            values = self.rows[column.name]
            values = values[~np.isnan(column.read(values))]
            if not len(values):
                continue
            scaled = column.features(values)[:, 0]
            distances = np.abs(scaled - np.median(scaled))
            farthest = int(distances.argmax())
            # A value such as -999, which stands for a missing one, may be in many rows.
            others = scaled[scaled != scaled[farthest]]
            low, high = np.quantile(others, [0.01, 0.99]) if len(others) else (0.0, 0.0)
            if 0 < high - low < NARROW:
                value = _cell(values[farthest]) if distances[farthest] > FAR else None
                found.append(Outlying(column=column.name, width=float(high - low), value=value))
        return found

    def examples(self) -> list[dict[str, str]]:
        """Return the first rows as text."""
        count = min(EXAMPLES, len(next(iter(self.rows.values()), ())))
        return [{name: _cell(column[row]) for name, column in self.rows.items()} for row in range(count)]


def _shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: column.shape[1:] for name, column in block.items()}


def _is_small(column: np.ndarray) -> bool:
    return column[:1].nbytes <= 1 << 16


def _cell(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{list(value.shape)} of {value.dtype}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _row_hashes(block: Block, rows: int) -> np.ndarray:
    """Return a hash per row [rows], uint64, of at most `HASHED_ELEMENTS` of a tensor.

    Columns of numbers alone tell rows apart where there are some: to hash texts takes as long as to read them.
    """
    import pandas as pd

    total = np.zeros(rows, dtype=np.uint64)
    if not rows:
        return total
    columns = [_summed(column) if is_ragged(column) else column for column in block.values()]
    numeric = [column for column in columns if column.dtype.kind not in TEXTS]
    parts = [_bits(column) for column in numeric]
    if len(numeric) < ENOUGH_COLUMNS:
        parts += [
            pd.util.hash_array(column.astype(object).reshape(rows, -1)[:, 0])
            for column in columns
            if column.dtype.kind in TEXTS
        ]
    with np.errstate(over="ignore"):
        for place, bits in enumerate(parts):
            # An odd factor of its own for each column (multiply-shift hashing, Dietzfelbinger et al., 1997).
            total += bits * (mix(np.uint64(place)) | np.uint64(1))
        return np.asarray(mix(total))


def _summed(column: np.ndarray) -> np.ndarray:
    """Return numbers by which rows of different lengths differ [rows, 2], float64."""
    flat = [array.reshape(-1).astype(np.float64) for array in column]
    return np.array([(len(row), float(row @ np.sin(np.arange(len(row)) + 1.0))) for row in flat])


def _bits(column: np.ndarray) -> np.ndarray:
    """Return the bits of a row's numbers [rows], uint64; of a tensor, a hash of them."""
    if column.ndim == 1:
        return _folded(column)
    flat = column.reshape(len(column), -1)
    flat = flat[:, :: max(1, flat.shape[1] // HASHED_ELEMENTS)]
    factors = mix(np.arange(flat.shape[1], dtype=np.uint64)) | np.uint64(1)
    found = np.empty(len(flat), dtype=np.uint64)
    step = max(1, HASHED_AT_ONCE // max(1, flat.shape[1]))
    for first in range(0, len(flat), step):
        found[first : first + step] = (_folded(flat[first : first + step]) * factors).sum(axis=1)
    return found


def _folded(numbers: np.ndarray) -> np.ndarray:
    """Return the bits of numbers, uint64, the high half also in the low one.

    Whole numbers have no low bits in float64, and a product with them would keep few bits of its factor.
    """
    bits = np.ascontiguousarray(numbers, dtype=np.float64).view(np.uint64)
    return bits ^ (bits >> np.uint64(32))


def _score_alone(column: np.ndarray, targets: np.ndarray, is_classification: bool) -> float:
    """Return how well a rule made from every other row predicts the rest; 0 where the commonest class does nearly.

    The rule: what rows with the same value have, or for numbers of many values, the row with the nearest one.
    """
    known, tested = slice(None, None, 2), slice(1, None, 2)
    if is_classification:
        _, numbers = np.unique(np.array([str(value) for value in targets]), return_inverse=True)
        classes = np.eye(numbers.max() + 1)[numbers]
        guess = _guess(column[known], classes[known], column[tested]).argmax(axis=1)
        right = float((guess == numbers[tested]).mean())
        base = float(classes[tested].mean(axis=0).max())
        return right if right > base + (1 - base) / 2 else 0.0
    try:
        values = targets.astype(np.float64)[:, None]
    except (TypeError, ValueError):
        return 0.0
    error = float(((values[tested] - _guess(column[known], values[known], column[tested])) ** 2).mean())
    variance = float(values[tested].var())
    return 1 - error / variance if variance > 0 else 0.0


def _guess(column: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return targets [m, k] for other values of a column, from known ones [n, k]."""
    import pandas as pd

    codes, distinct = pd.factorize(column)
    if len(distinct) > FEW_VALUES and column.dtype != object:
        order = np.argsort(column, kind="stable")
        values = column[order]
        above = np.clip(np.searchsorted(values, others), 1, len(values) - 1)
        with np.errstate(invalid="ignore"):  # infinity is not nearer to one than to the other
            nearest = np.where(others - values[above - 1] <= values[above] - others, above - 1, above)
        return np.asarray(targets[order[nearest]])
    sums = np.zeros((len(distinct) + 1, targets.shape[1]))
    counts = np.zeros(len(distinct) + 1)
    np.add.at(sums, codes, targets)  # missing values, -1, are the last
    np.add.at(counts, codes, 1)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], targets.mean(axis=0))
    return np.asarray(means[pd.Index(distinct).get_indexer(others)])
