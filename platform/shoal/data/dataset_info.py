"""What is known of a data set before training: its splits, the checks of its rows, the fitted transform.

It reads the blocks of a source once, in any process; independent of files, of workers and of Ray.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict

from shoal.data.chat import holds_messages
from shoal.data.config import DataConfig
from shoal.data.images import holds_images
from shoal.data.preprocessing import (
    ColumnStats,
    Label,
    Moments,
    Transform,
    as_classes,
    as_numbers,
    is_missing,
)
from shoal.data.sampler import SPLITS, TRAIN, VALIDATION, Lanes, SplitRule, count_splits
from shoal.data.sources.base import Block, Source, check_column, read_again
from shoal.errors import DataError

MAX_CLASSES = 10_000


@dataclass(frozen=True)
class PreprocessingSpec:
    """What determines how rows are preprocessed, besides the rows.

    Attributes:
        data: the config section.
        seed: of the order, and of the splits unless `data.split_seed` is set.
        is_classification: the label is one of several classes, else a number.
        is_ready: the features are what the model takes; they are not standardized.
        tokenizer: of a source of tokens, as JSON.
        has_label: there is a column to predict.
    """

    data: DataConfig
    seed: int
    is_classification: bool
    is_ready: bool
    tokenizer: str | None = None
    has_label: bool = True

    @property
    def split_rule(self) -> SplitRule:
        return self.data.split_rule(self.seed)


class DatasetInfo(BaseModel):
    """All that is known of the data before a worker starts; every checkpoint holds it.

    Attributes:
        transform: fitted on the training rows.
        rows: number of rows of each split.
        fingerprint: hash of the source's content.
        row_bytes: of a transformed row with its target.
    """

    model_config = ConfigDict(frozen=True)
    transform: Transform
    rows: dict[str, int]
    fingerprint: str
    row_bytes: int

    def lanes(self, preprocessing: PreprocessingSpec, worker: int = 0, num_workers: int = 1) -> Lanes:
        return Lanes(
            self.rows[TRAIN], preprocessing.data.global_batch_size, preprocessing.seed, worker, num_workers
        )


@dataclass
class DatasetSummary:
    """What blocks hold: rows by split, statistics of the training rows' columns, the label. Summaries can be merged."""

    rows: dict[str, int]
    names: tuple[str, ...]
    columns: dict[str, ColumnStats] = field(default_factory=dict)
    label_missing: int = 0
    label_infinite: int = 0
    label_is_fractional: bool = False
    label_is_text: bool = False
    label_counts: Counter[bool | int | str] = field(default_factory=Counter)
    label_moments: Moments | None = None

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def summarise_block(block: Block, split: np.ndarray, preprocessing: PreprocessingSpec) -> DatasetSummary:
    """Summarise one block.

    Raises:
        DataError: there is no such label column.
    """
    if not preprocessing.has_label:
        return DatasetSummary(count_splits(split), tuple(block), _columns(block, split, preprocessing))
    label = preprocessing.data.label
    check_column(preprocessing.data.source, "data.label", label, block)
    train = split == 0
    values = block[label]
    if values.ndim > 1 and values.shape[1:] != (1,):
        raise DataError(
            f"data.label='{label}' has shape {values.shape[1:]} per row: it must be one value per row"
        )
    values = values.reshape(len(values))
    missing = is_missing(values)
    known = values[~missing]
    summary = DatasetSummary(
        rows=count_splits(split),
        names=tuple(block),
        columns=_columns(block, split, preprocessing),
        label_missing=int(missing.sum()),
        label_is_text=known.dtype.kind in "US"
        or (known.dtype == object and any(isinstance(value, str) for value in known)),
        label_infinite=int(np.isinf(known).sum()) if known.dtype.kind == "f" else 0,
    )
    if preprocessing.is_classification:
        summary.label_is_fractional = bool(
            known.dtype.kind == "f" and len(known) and not np.all(known == np.floor(known))
        )
        if not summary.label_is_fractional:
            summary.label_counts = Counter(as_classes(known))
    elif not summary.label_is_text:
        summary.label_moments = Moments.of(as_numbers(values[train]))
    return summary


def _columns(block: Block, split: np.ndarray, preprocessing: PreprocessingSpec) -> dict[str, ColumnStats]:
    label = preprocessing.data.label if preprocessing.has_label else None
    train = split == 0
    for name, column in block.items():
        if name != label and holds_images(column):
            raise DataError(
                f"column '{name}' of '{preprocessing.data.source}' holds encoded images, which only "
                "task=image_classification decodes: set it, or leave the column out of the data"
            )
        if name != label and holds_messages(column):
            raise DataError(
                f"column '{name}' of '{preprocessing.data.source}' holds chat messages, which are text: set "
                f"task=causal_lm, masked_lm or sequence_classification and data.text={name}, or leave it out"
            )
    return {
        name: ColumnStats.of(column[train], preprocessing.is_ready)
        for name, column in block.items()
        if name != label
    }


def merge_summaries(summaries: Iterable[DatasetSummary]) -> DatasetSummary:
    """Join the summaries of all blocks, in their order."""
    joined: DatasetSummary | None = None
    for other in summaries:
        if joined is None:
            joined = other
            continue
        if set(other.names) != set(joined.names):
            odd = sorted(set(other.names) ^ set(joined.names))
            raise DataError(
                f"column '{odd[0]}' is in only a part of the data: every part needs the same columns"
            )
        moments = joined.label_moments
        joined = DatasetSummary(
            rows={name: joined.rows[name] + other.rows[name] for name in SPLITS},
            names=joined.names,
            columns={name: stats.merge(other.columns[name], name) for name, stats in joined.columns.items()},
            label_missing=joined.label_missing + other.label_missing,
            label_infinite=joined.label_infinite + other.label_infinite,
            label_is_fractional=joined.label_is_fractional or other.label_is_fractional,
            label_is_text=joined.label_is_text or other.label_is_text,
            label_counts=joined.label_counts + other.label_counts,
            label_moments=moments.merge(other.label_moments) if moments and other.label_moments else moments,
        )
    if joined is None or joined.total == 0:
        raise DataError("the data is empty: it has 0 rows; name a data.source that has some")
    return joined


def fit_dataset_info(
    summary: DatasetSummary, preprocessing: PreprocessingSpec, fingerprint: str
) -> DatasetInfo:
    """Check the whole data and fit the transform.

    Raises:
        DataError: a rule is broken; the message has the value, the rule and the remedy.
    """
    data, total = preprocessing.data, summary.total
    if summary.label_missing:
        raise DataError(
            f"data.label='{data.label}' is missing (NaN) in {summary.label_missing} of {total} rows: "
            "every row needs a label; fill or drop these rows"
        )
    if summary.label_infinite:
        raise DataError(
            f"data.label='{data.label}' is infinite (inf) in {summary.label_infinite} of {total} rows: "
            "every label must be finite; drop these rows"
        )
    if not summary.columns:
        raise DataError(f"'{data.source}' has no column besides the label '{data.label}': add features")
    label = _fit_label(summary, preprocessing) if preprocessing.has_label else Label(name="")
    _check_splits(summary.rows, data)
    columns = tuple(stats.fit(name) for name, stats in summary.columns.items())
    transform = Transform(columns=columns, label=label, tokenizer=preprocessing.tokenizer)
    if data.shape and not preprocessing.tokenizer:
        transform = _shaped(transform, data)
    narrow = transform.narrow
    number_bytes = np.dtype(narrow.dtype).itemsize if narrow else 4
    row_bytes = number_bytes * int(np.prod(transform.input_shape)) + (
        8 if preprocessing.is_classification else 4
    )
    return DatasetInfo(transform=transform, rows=summary.rows, fingerprint=fingerprint, row_bytes=row_bytes)


def blocks_with_splits(
    source: Source, preprocessing: PreprocessingSpec
) -> Iterable[tuple[Block, np.ndarray]]:
    """Yield each block that this process reads, with the split of its rows."""
    rule = preprocessing.split_rule
    row = 0
    for source_split, block in source.blocks():
        rows = len(next(iter(block.values()))) if block else 0
        yield block, rule.assign(np.arange(row, row + rows), source_split, source.has_validation)
        row += rows


def inspect_source(source: Source, preprocessing: PreprocessingSpec) -> DatasetInfo:
    """Check and fit in this process, block by block."""
    summary = read_again(
        lambda: merge_summaries(
            summarise_block(block, split, preprocessing)
            for block, split in blocks_with_splits(source, preprocessing)
        )
    )
    return fit_dataset_info(summary, preprocessing, source.fingerprint)


def check_batch(data: DataConfig, rows: dict[str, int]) -> None:
    """Refuse a batch that the training rows do not fill.

    Raises:
        DataError: it is larger than they are.
    """
    if rows[TRAIN] < data.global_batch_size:
        raise DataError(
            f"data.global_batch_size={data.global_batch_size} is larger than the {rows[TRAIN]} training rows "
            f"of '{data.source}': set it to {rows[TRAIN]} or less"
        )


def _check_splits(rows: dict[str, int], data: DataConfig) -> None:
    check_batch(data, rows)
    if data.validation_fraction and not rows[VALIDATION]:
        raise DataError(
            f"data.validation_fraction={data.validation_fraction} of {sum(rows.values())} rows came out empty: "
            "raise it, or set it to 0 to train without validation"
        )


def _shaped(transform: Transform, data: DataConfig) -> Transform:
    assert data.shape is not None
    if math.prod(transform.input_shape) != math.prod(data.shape):
        raise DataError(
            f"data.shape={list(data.shape)} holds {math.prod(data.shape)} numbers, and a row of '{data.source}' has "
            f"{math.prod(transform.input_shape)} {list(transform.input_shape)}: set a shape of that many"
        )
    return transform.model_copy(update={"shape": data.shape})


def _fit_label(summary: DatasetSummary, preprocessing: PreprocessingSpec) -> Label:
    data = preprocessing.data
    if not preprocessing.is_classification:
        if summary.label_is_text:
            raise DataError(
                f"data.label='{data.label}' holds text: task=regression needs numbers; set task=classification"
            )
        assert summary.label_moments is not None
        mean, std = summary.label_moments.fitted()
        return Label(name=data.label, mean=mean, std=std)
    if summary.label_is_fractional:
        raise DataError(
            f"data.label='{data.label}' holds fractions: task=classification needs classes; set task=regression"
        )
    classes = sorted(summary.label_counts, key=lambda value: (isinstance(value, str), value))
    if len(classes) < 2:
        raise DataError(
            f"data.label='{data.label}' has one class ({classes[0]!r}) in all {summary.total} rows: "
            "classification needs at least two; name another label"
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"data.label='{data.label}' has {len(classes)} classes in {summary.total} rows, more than "
            f"{MAX_CLASSES}: name another label, or set task=regression"
        )
    return Label(name=data.label, classes=tuple(classes))
