"""What blocks of rows hold, of any process: rows by split, statistics of columns, classes. Summaries can be merged."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from shoal.data.array_stats import ArrayStats
from shoal.data.cells import blanked
from shoal.data.chat import holds_messages
from shoal.data.glance import Glance
from shoal.data.images import holds_images
from shoal.data.moments import Moments
from shoal.data.packing import is_ragged
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, count_splits
from shoal.data.sources.base import Block, check_column
from shoal.data.statistics import ColumnStats, TextStats
from shoal.data.template import names
from shoal.data.values import as_classes, as_numbers, is_missing
from shoal.errors import DataError


@dataclass
class DatasetSummary:
    """What blocks hold: rows by split, statistics of the training rows' columns, the label. Summaries can be merged.

    Attributes:
        targets: columns that are compared with as they are; none where the label is a class or a number.
    """

    rows: dict[str, int]
    names: tuple[str, ...]
    columns: dict[str, ColumnStats | ArrayStats] = field(default_factory=dict)
    targets: dict[str, ArrayStats] = field(default_factory=dict)
    target_moments: dict[str, Moments] = field(default_factory=dict)
    weight_moments: Moments | None = None
    label_missing: dict[str, int] = field(default_factory=dict)
    label_infinite: int = 0
    label_is_fractional: bool = False
    label_is_text: bool = False
    label_counts: dict[str, Counter[bool | int | str]] = field(default_factory=dict)
    label_moments: Moments | None = None
    label_text: TextStats | None = None
    glance: Glance = field(default_factory=Glance)

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def summarise_block(block: Block, split: np.ndarray, preprocessing: PreprocessingSpec) -> DatasetSummary:
    """Summarise one block.

    Raises:
        DataError: there is no such label column, or a weight is none.
    """
    summary = _summarise_label(block, split, preprocessing)
    if preprocessing.data.weight is not None:
        weights = weights_of(block, preprocessing.data.weight, preprocessing.data.source)
        summary.weight_moments = Moments.of(weights[split == 0])
    return summary


def weights_of(block: Block, name: str, uri: str) -> np.ndarray:
    """Return the weights [n] of a block's rows, float64.

    Raises:
        DataError: there is no such column, or a weight is negative or no number.
    """
    check_column(uri, "data.weight", name, block)
    weights = as_numbers(block[name].reshape(len(block[name])))
    odd = np.flatnonzero(~(weights >= 0))
    if len(odd):
        raise DataError(
            f"data.weight='{name}' holds {block[name][odd[0]]} in {len(odd)} rows: a weight is a number, 0 or more; "
            "fill or drop these rows"
        )
    return weights


def _summarise_label(block: Block, split: np.ndarray, preprocessing: PreprocessingSpec) -> DatasetSummary:
    """Summarise one block, without weights."""
    if not preprocessing.has_label:
        columns = _columns(block, split, preprocessing)
        return DatasetSummary(count_splits(split), tuple(block), columns)
    if preprocessing.keeps_targets:
        return _summarise_with_targets(block, split, preprocessing)
    label = preprocessing.data.labels[0]
    train = split == 0
    values = blanked(_one_label(block, preprocessing), preprocessing.data.missing or ())
    columns = _columns(block, split, preprocessing)
    missing = is_missing(values)
    known = values[~missing]
    summary = DatasetSummary(
        rows=count_splits(split),
        names=tuple(block),
        columns=columns,
        label_missing=count_splits(split[missing]),
        label_is_text=known.dtype.kind in "US"
        or (known.dtype == object and any(isinstance(value, str) for value in known)),
        label_infinite=int(np.isinf(known).sum()) if known.dtype.kind == "f" else 0,
        glance=Glance() if preprocessing.tokenizer else Glance.of(_kept(block, preprocessing), split, label),
    )
    if preprocessing.is_classification:
        summary.label_is_fractional = bool(
            known.dtype.kind == "f" and len(known) and not np.all(known == np.floor(known))
        )
        if not summary.label_is_fractional:
            summary.label_counts = _count_classes(known, split[~missing])
    elif summary.label_is_text:
        summary.label_text = TextStats.of(values[train & ~missing], preprocessing.column_options, label)
    else:
        summary.label_moments = Moments.of(as_numbers(values[train]))
    return summary


def _kept(block: Block, preprocessing: PreprocessingSpec) -> Block:
    """Return the columns that are not dropped."""
    kinds = preprocessing.data.columns
    return {name: column for name, column in block.items() if kinds.get(name) != "drop"}


def _summarise_with_targets(
    block: Block, split: np.ndarray, preprocessing: PreprocessingSpec
) -> DatasetSummary:
    """Summarise a block whose label is compared with as it is."""
    columns = list(names(preprocessing.target_tree))
    for name in columns:
        check_column(preprocessing.data.source, "data.label", name, block)
        if not ArrayStats.describes(block[name]):
            raise DataError(
                f"data.label: column '{name}' holds {block[name].dtype}, and a loss compares numbers: return "
                "numbers, or set task=classification"
            )
        _check_target(name, block[name], preprocessing.are_binary)
    return DatasetSummary(
        rows=count_splits(split),
        names=tuple(block),
        columns=_columns(block, split, preprocessing),
        label_counts=_count_boxes(block[columns[0]], split, preprocessing.categories),
        targets={name: ArrayStats.of(block[name]) for name in columns},
        target_moments={
            name: Moments.of(as_numbers(block[name][split == 0].reshape(-1)))
            for name in columns
            if not is_ragged(block[name])
        },
    )


def _count_boxes(
    boxes: np.ndarray, split: np.ndarray, categories: tuple[str, ...]
) -> dict[str, Counter[bool | int | str]]:
    """Return the boxes of each class, by split; nothing where the label is no boxes."""
    counts: dict[str, Counter[bool | int | str]] = {}
    for number, name in enumerate(SPLITS if categories else ()):
        found = Counter(int(row[0]) for rows in boxes[split == number] for row in rows)
        counts[name] = Counter({categories[place]: count for place, count in found.items()})
    return counts


def _check_target(name: str, values: np.ndarray, is_binary: bool) -> None:
    """Refuse a label that is no number, or where each is 0 or 1, another one."""
    if is_ragged(values):
        return
    odd = int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0
    if odd:
        raise DataError(
            f"data.label: column '{name}' holds {odd} values that are missing or infinite: every row needs a label; "
            "fill or drop these rows"
        )
    if is_binary and not np.isin(values, (0, 1)).all():
        value = values[~np.isin(values, (0, 1))][0]
        raise DataError(
            f"data.label: column '{name}' holds {value}, and with task=multilabel_classification each label is 0 or 1: "
            "write it so, or set task=regression"
        )


def _one_label(block: Block, preprocessing: PreprocessingSpec) -> np.ndarray:
    """Return the values [n] of a label that is a class or a number.

    Raises:
        DataError: it is not there, or has several values per row.
    """
    label, tree = preprocessing.data.labels[0], preprocessing.target_tree
    remedy = (
        "return one of them, or the argmax of a one-hot vector; task=multilabel_classification takes a row of 0s and "
        "1s, and task=custom with a train.loss of your own takes anything"
    )
    if not isinstance(tree, str):
        parts = ", ".join(list(names(tree))[:10])
        raise DataError(
            f"data.label='{label}' holds several arrays ({parts}), and there must be one label per row: {remedy}"
        )
    check_column(preprocessing.data.source, "data.label", label, block)
    values = block[label]
    if is_ragged(values) or np.prod(values.shape[1:]) != 1:
        shape = "a different one" if is_ragged(values) else tuple(values.shape[1:])
        raise DataError(
            f"data.label='{label}' has shape {shape} per row: there must be one label per row; {remedy}"
        )
    return values.reshape(len(values))


def _count_classes(labels: np.ndarray, split: np.ndarray) -> dict[str, Counter[bool | int | str]]:
    """Return the rows of each class, by split."""
    import pandas as pd

    places, found = pd.factorize(labels)
    distinct = np.array([*found, None], dtype=object)[:-1] if labels.dtype == object else np.asarray(found)
    classes = as_classes(distinct)
    counts: dict[str, Counter[bool | int | str]] = {}
    for number, name in enumerate(SPLITS):
        of_split = np.bincount(places[split == number], minlength=len(classes))
        counts[name] = Counter()
        for value, count in zip(classes, of_split.tolist(), strict=True):
            if count:
                counts[name][value] += count
    return counts


def _columns(
    block: Block, split: np.ndarray, preprocessing: PreprocessingSpec
) -> dict[str, ColumnStats | ArrayStats]:
    for name in preprocessing.data.features or ():
        check_column(preprocessing.data.source, "data.features", name, block)
    features = {name: column for name, column in block.items() if preprocessing.is_feature(name)}
    train = split == 0
    kept = {name: column for name, column in _kept(block, preprocessing).items() if name in features}
    for name, column in kept.items():
        if holds_images(column):
            raise DataError(
                f"column '{name}' of '{preprocessing.data.source}' holds encoded images, which only "
                "task=image_classification decodes: set it, or leave the column out of the data"
            )
        if holds_messages(column):
            raise DataError(
                f"column '{name}' of '{preprocessing.data.source}' holds chat messages, which are text: set "
                f"task=causal_lm, masked_lm or sequence_classification and data.text={name}, or leave it out"
            )
    return {
        name: ArrayStats.of(np.empty(0))
        if name not in kept
        else ArrayStats.of(column)
        if preprocessing.is_ready and ArrayStats.describes(column)
        else ColumnStats.of(column[train], name, preprocessing.column_options)
        for name, column in features.items()
    }


def merge_summaries(summaries: Iterable[DatasetSummary]) -> DatasetSummary:
    """Join the summaries of all blocks, in their order."""
    joined = reduce(_merge, summaries, None)
    if joined is None or joined.total == 0:
        raise DataError("the data is empty: it has 0 rows; name a data.source that has some")
    return joined


def _merged(
    one: ColumnStats | ArrayStats, other: ColumnStats | ArrayStats, name: str
) -> ColumnStats | ArrayStats:
    if isinstance(one, ArrayStats) and isinstance(other, ArrayStats):
        return one.merge(other, name)
    if isinstance(one, ColumnStats) and isinstance(other, ColumnStats):
        return one.merge(other, name)
    raise DataError(
        f"column '{name}' holds arrays of numbers in one part of the data and others in another: make it one type "
        "throughout"
    )


def _merge(one: DatasetSummary | None, other: DatasetSummary) -> DatasetSummary:
    if one is None:
        return other
    if set(other.names) != set(one.names):
        odd = sorted(set(other.names) ^ set(one.names))
        raise DataError(f"column '{odd[0]}' is in only a part of the data: every part needs the same columns")
    moments, text = one.label_moments, one.label_text
    weighed, other_weighed = one.weight_moments, other.weight_moments
    return DatasetSummary(
        rows={name: one.rows[name] + other.rows[name] for name in SPLITS},
        names=one.names,
        columns={name: _merged(stats, other.columns[name], name) for name, stats in one.columns.items()},
        targets={name: stats.merge(other.targets[name], name) for name, stats in one.targets.items()},
        weight_moments=weighed.merge(other_weighed) if weighed and other_weighed else weighed,
        target_moments={
            name: found.merge(other.target_moments[name])
            for name, found in one.target_moments.items()
            if name in other.target_moments
        },
        label_missing={
            name: one.label_missing.get(name, 0) + other.label_missing.get(name, 0) for name in SPLITS
        },
        label_infinite=one.label_infinite + other.label_infinite,
        label_is_fractional=one.label_is_fractional or other.label_is_fractional,
        label_is_text=one.label_is_text or other.label_is_text,
        label_counts={
            name: one.label_counts.get(name, Counter()) + other.label_counts.get(name, Counter())
            for name in SPLITS
        },
        label_moments=moments.merge(other.label_moments) if moments and other.label_moments else moments,
        label_text=text.merge(other.label_text) if text and other.label_text else text,
        glance=one.glance.merge(other.glance) if one.glance.hashes else one.glance,
    )
