"""What is known of a data set before training: its splits, the checks of its rows, the fitted transform.

It reads the blocks of a source once, in any process; independent of files, of workers and of Ray.
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import reduce

import numpy as np
from pydantic import BaseModel, ConfigDict

from shoal.data.config import STANDARD, DataConfig
from shoal.data.glance import Duplicates, Outlying, Suspect
from shoal.data.labels import Label, Weight
from shoal.data.preprocessing import Column, Transform
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TRAIN, VALIDATION, Lanes
from shoal.data.schema import ColumnSummary, column_notes, fit_columns, heard, of_any_length
from shoal.data.sources.base import FILE_SCHEMES, Block, Source, read_again
from shoal.data.summary import DatasetSummary, merge_summaries, summarise_block
from shoal.data.template import Template, joined, keep
from shoal.data.weights import WEIGHT_BYTES
from shoal.errors import DataError

MAX_CLASSES = 10_000
MAX_SHOWN_CLASSES = 100
SHOWN_SHARE = 0.01  # of held-out rows that are training rows
UNLABELLED = -1  # the class of rows whose label is kept secret, as competitions give their test split


class DatasetInfo(BaseModel):
    """All that is known of the data before a worker starts; every checkpoint holds it.

    Attributes:
        transform: fitted on the training rows.
        rows: number of rows of each split.
        fingerprint: hash of the source's content.
        row_bytes: of a transformed row with its target.
        columns: what each column was understood as.
        class_counts: rows of each class, the `MAX_SHOWN_CLASSES` most frequent, by split.
        classes_without_training: rows of each class that only held-out splits have.
        duplicates: rows of held-out splits that are training rows too.
        suspects: columns that alone predict the label.
        outlying: columns in which a few values are far from the others.
        examples: a few training rows.
    """

    model_config = ConfigDict(frozen=True)
    transform: Transform
    rows: dict[str, int]
    fingerprint: str
    row_bytes: int
    columns: tuple[ColumnSummary, ...] = ()
    class_counts: dict[str, dict[str, int]] = {}
    classes_without_training: dict[str, int] = {}
    duplicates: tuple[Duplicates, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    outlying: tuple[Outlying, ...] = ()
    examples: tuple[dict[str, str], ...] = ()

    @property
    def notes(self) -> list[str]:
        """A line for each thing that a person should know before training."""
        label = self.transform.label
        lines = column_notes(self.columns, self.rows[TRAIN])
        if label.reading:
            lines.append(f"label column '{label.name}' is read as {label.reading}")
        lines += [f"the split {name} has no labels: it is left out" for name in label.unlabelled]
        lines += [
            f"classes {' and '.join(map(repr, alike))} differ only by blanks or case: write them alike if they are one"
            for alike in _alike(label.classes)[:3]
        ]
        if self.classes_without_training:
            what = "boxes" if self.transform.categories else "rows"
            some = ", ".join(
                f"{name!r} ({count} {what})"
                for name, count in list(self.classes_without_training.items())[:5]
            )
            count = len(self.classes_without_training)
            which = "1 class has" if count == 1 else f"{count} classes have"
            lines.append(f"{which} no training {what} and cannot be learnt: {some}")
        lines += [
            f"{found.share:.1%} of the {found.split} rows are training rows too: their metrics are too good"
            for found in self.duplicates
            if found.share >= SHOWN_SHARE
        ]
        lines += [
            f"column '{found.column}' alone predicts '{label.name}' ({found.score:.0%}): is it known before the label?"
            for found in self.suspects[:3]
        ]
        lines += [
            f"column '{found.column}': some values{f', e.g. {found.value},' * bool(found.value)} are so far from the "
            f"others that 98% of these lie within {found.width:.2g} standard deviations, nearly one number: name them "
            "in data.missing, or leave those rows out"
            for found in self.outlying
        ]
        return lines

    def lanes(self, preprocessing: PreprocessingSpec, worker: int = 0, num_workers: int = 1) -> Lanes:
        return Lanes(
            self.rows[TRAIN], preprocessing.data.global_batch_size, preprocessing.seed, worker, num_workers
        )


def fit_dataset_info(
    summary: DatasetSummary, preprocessing: PreprocessingSpec, fingerprint: str
) -> DatasetInfo:
    """Check the whole data and fit the transform.

    Raises:
        DataError: a rule is broken; the message has the value, the rule and the remedy.
    """
    data, unlabelled = preprocessing.data, _unlabelled_splits(summary)
    _check_label(summary, unlabelled, ", ".join(data.labels))
    if not summary.columns:
        raise DataError(f"'{data.source}' has no column besides the label '{data.label}': add features")
    label = _fit_label(summary, unlabelled, preprocessing) if preprocessing.has_label else Label(name="")
    targets = tuple(_fit_target(name, summary, preprocessing) for name in summary.targets)
    rows = {name: 0 if name in unlabelled else count for name, count in summary.rows.items()}
    _check_splits(rows, data, unlabelled)
    columns, summaries = fit_columns(
        summary.columns,
        preprocessing.column_options,
        data.source,
        reader_drops=data.source.partition(":")[0] in FILE_SCHEMES,
    )
    if preprocessing.audio:
        columns, targets = heard(columns, preprocessing.audio), of_any_length(targets)
    transform = Transform(
        columns=columns,
        label=label,
        tokenizer=preprocessing.tokenizer,
        image_bits=preprocessing.image_bits,
        input_tree=_input_tree(columns, preprocessing),
        target_columns=targets,
        weight=_fit_weight(summary, data),
        target_tree=preprocessing.target_tree if targets else None,
        collate=None if data.collate == STANDARD else data.collate,
        audio=preprocessing.audio,
    )
    if data.shape and not preprocessing.tokenizer:
        transform = _shaped(transform, data)
    takes_number = preprocessing.has_label and not preprocessing.keeps_targets
    glance, named = summary.glance, data.labels[0] if takes_number else None
    return DatasetInfo(
        transform=transform,
        rows=rows,
        fingerprint=fingerprint,
        row_bytes=_row_bytes(transform),
        columns=summaries,
        class_counts={
            name: {str(value): count for value, count in counts.most_common(MAX_SHOWN_CLASSES)}
            for name, counts in summary.label_counts.items()
            if counts and name not in unlabelled
        },
        classes_without_training=_classes_without_training(summary, unlabelled),
        duplicates=tuple(glance.duplicates()),
        suspects=tuple(glance.suspects(named, preprocessing.is_classification)),
        outlying=tuple(glance.outlying(columns)),
        examples=tuple(glance.examples()),
    )


def _check_label(summary: DatasetSummary, unlabelled: tuple[str, ...], label: str) -> None:
    """Refuse rows without a label, or with an infinite one."""
    missing = sum(count for name, count in summary.label_missing.items() if name not in unlabelled)
    if missing:
        raise DataError(
            f"data.label='{label}' is missing (NaN) in {missing} of {summary.total} rows: "
            "every row needs a label; fill or drop these rows"
        )
    if summary.label_infinite:
        raise DataError(
            f"data.label='{label}' is infinite (inf) in {summary.label_infinite} of {summary.total} rows: "
            "every label must be finite; drop these rows"
        )


def _input_tree(columns: tuple[Column, ...], preprocessing: PreprocessingSpec) -> Template | None:
    """Return how columns are in what a model takes; None: they are joined to one array."""
    parts = preprocessing.features
    if parts is None or not preprocessing.is_ready:
        return None
    inputs = joined(parts)
    tree = inputs and keep(inputs, {column.name for column in columns})
    is_one_array = isinstance(tree, str) and not columns[0].is_ragged
    return None if is_one_array else tree


def _row_bytes(transform: Transform) -> int:
    if transform.input_tree is not None:
        inputs = transform.packing().nbytes
    else:
        narrow = transform.narrow
        inputs = (np.dtype(narrow.dtype).itemsize if narrow else 4) * int(np.prod(transform.input_shape))
    if transform.weight is not None:
        inputs += WEIGHT_BYTES
    if transform.target_tree is not None:
        return inputs + transform.packing(is_target=True).nbytes
    return inputs + (8 if transform.label.classes else 4)


def _unlabelled_splits(summary: DatasetSummary) -> tuple[str, ...]:
    """Return the held-out splits of which no row has a label: missing, or -1 where no training row is -1."""
    counts = {name: summary.label_counts.get(name, Counter()) for name in SPLITS}
    return tuple(
        name
        for name in SPLITS
        if name != TRAIN
        and summary.rows[name]
        and (
            summary.label_missing.get(name, 0) == summary.rows[name]
            or (set(counts[name]) == {UNLABELLED} and UNLABELLED not in counts[TRAIN])
        )
    )


def _label_counts(summary: DatasetSummary, unlabelled: tuple[str, ...]) -> Counter[bool | int | str]:
    """Return the rows of each class over all splits that have labels."""
    labelled = (counts for name, counts in summary.label_counts.items() if name not in unlabelled)
    return reduce(lambda one, other: one + other, labelled, Counter())


def _classes_without_training(summary: DatasetSummary, unlabelled: tuple[str, ...]) -> dict[str, int]:
    """Return the rows of each class that no training row has."""
    trained = summary.label_counts.get(TRAIN, Counter())
    return {
        str(value): count
        for value, count in _label_counts(summary, unlabelled).items()
        if value not in trained
    }


def _alike(classes: tuple[bool | int | str, ...]) -> list[list[str]]:
    """Return the classes that are the same text but for blanks and case."""
    found: dict[str, list[str]] = {}
    for name in classes:
        if isinstance(name, str):
            found.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return [names for names in found.values() if len(names) > 1]


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


def _check_splits(rows: dict[str, int], data: DataConfig, unlabelled: tuple[str, ...]) -> None:
    check_batch(data, rows)
    if not data.validation_fraction or rows[VALIDATION]:
        return
    if VALIDATION in unlabelled:
        raise DataError(
            f"no row of the validation split of '{data.source}' has a label ('{data.labels[0]}'): add the labels, or "
            "set data.validation_fraction=0 to train without validation"
        )
    raise DataError(
        f"data.validation_fraction={data.validation_fraction} of {sum(rows.values())} rows came out empty, or the "
        "data's own validation split has no rows: raise it, add rows, or set it to 0 to train without validation"
    )


def _shaped(transform: Transform, data: DataConfig) -> Transform:
    assert data.shape is not None
    if transform.input_tree is not None:
        raise DataError(
            f"data.shape={list(data.shape)} is of one array, and a row of '{data.source}' has several, or a length "
            "of its own: leave data.shape out, and reshape them in __getitem__"
        )
    if math.prod(transform.input_shape) != math.prod(data.shape):
        raise DataError(
            f"data.shape={list(data.shape)} holds {math.prod(data.shape)} numbers, and a row of '{data.source}' has "
            f"{math.prod(transform.input_shape)} {list(transform.input_shape)}: set a shape of that many"
        )
    return transform.model_copy(update={"shape": data.shape})


def _fit_weight(summary: DatasetSummary, data: DataConfig) -> Weight | None:
    """Fit the weights of samples: they are divided by their mean over the training rows."""
    if data.weight is None or summary.weight_moments is None:
        return None
    mean = float(np.asarray(summary.weight_moments.fitted()[0]))
    if mean == 0:
        raise DataError(f"data.weight='{data.weight}' is 0 in every training row: give some rows more")
    return Weight(name=data.weight, mean=mean)


def _fit_target(name: str, summary: DatasetSummary, preprocessing: PreprocessingSpec) -> Column:
    """Fit a column that is compared with as it is; its moments are those of all its numbers in training."""
    column = summary.targets[name].fit(name)
    if preprocessing.categories:  # other data may have other numbers of boxes
        return column.model_copy(
            update={"is_ragged": True, "shape": (max(1, column.shape[0]), *column.shape[1:])}
        )
    if name not in summary.target_moments:
        return column
    mean, std = summary.target_moments[name].fitted()
    return column.model_copy(update={"mean": mean, "std": std})


def _fit_label(
    summary: DatasetSummary, unlabelled: tuple[str, ...], preprocessing: PreprocessingSpec
) -> Label:
    data = preprocessing.data
    if preprocessing.categories:
        return _fit_boxes(summary, preprocessing)
    if preprocessing.keeps_targets:
        return Label(name=", ".join(data.labels))
    if not preprocessing.is_classification:
        return _fit_number(summary, unlabelled, data)
    if summary.label_is_fractional:
        raise DataError(
            f"data.label='{data.label}' holds fractions: task=classification needs classes; set task=regression"
        )
    classes = sorted(_label_counts(summary, unlabelled), key=lambda value: (isinstance(value, str), value))
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
    trained = summary.label_counts.get(TRAIN, Counter())
    counts = tuple(trained[name] for name in classes)
    return Label(name=data.labels[0], classes=tuple(classes), counts=counts, unlabelled=unlabelled)


def _fit_boxes(summary: DatasetSummary, preprocessing: PreprocessingSpec) -> Label:
    trained = summary.label_counts[TRAIN]
    if not trained.total():
        raise DataError(
            f"the {summary.rows[TRAIN]} training images of '{preprocessing.data.source}' have no boxes: name data "
            "with objects to be found"
        )
    counts = tuple(trained[name] for name in preprocessing.categories)
    return Label(name=preprocessing.data.labels[0], classes=preprocessing.categories, counts=counts)


def _fit_number(summary: DatasetSummary, unlabelled: tuple[str, ...], data: DataConfig) -> Label:
    """Fit the label of a regression, whose every cell must be a number."""
    text = summary.label_text
    if text is None:
        assert summary.label_moments is not None
        mean, std = summary.label_moments.fitted()
        return Label(name=data.labels[0], mean=mean, std=std, unlabelled=unlabelled)
    reading = text.reading
    if reading is None:
        raise DataError(
            f"data.label='{data.label}' holds text: task=regression needs numbers (a category of pandas is none, "
            "even of numbers: astype(float)); set task=classification"
        )
    readable = text.readable(reading)
    if readable.count < text.cells:
        raise DataError(
            f"data.label='{data.label}' holds {text.cells - readable.count} cells that are no number (e.g. "
            f"{readable.odd!r}): every row needs a label; fix or drop these rows"
        )
    mean, std = readable.moments.fitted()
    return Label(name=data.labels[0], mean=mean, std=std, reading=reading, unlabelled=unlabelled)
