"""The fitted transform: raw columns to the tensors that a model takes, and back from outputs to labels.

It is fitted on the training split alone and saved with every checkpoint and model, so that prediction applies the same
one. Depends on columns; independent of files, splits and models.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from shoal.data.audio import AudioFormat, as_spectrograms
from shoal.data.cells import PLAIN, Decimal, Reading, blanked, is_missing_text
from shoal.data.labels import Label, Weight
from shoal.data.packing import IGNORED, STORED_AS, Field, Packing, as_ragged, lengths_of
from shoal.data.template import Template, fill
from shoal.data.tokenizer import tokenizer_from_json
from shoal.data.values import BUCKETS, as_numbers, as_texts, hashed, read_cells
from shoal.data.weights import as_matrix, with_weights
from shoal.errors import DataError, nearest

MAX_CATEGORIES = 100  # of a text column; one of more values is hashed
# 0002-01-01 and 9999-01-01, in seconds: dates before mean "no beginning", dates from there on "no end".
OPEN_BEGINNING, OPEN_END = -62_104_060_800.0, 253_370_764_800.0
FAR = 10.0  # standard deviations at which dates end

Kind = Literal["number", "category", "hashed", "words", "tensor", "ready"]

# Types of rows that are kept as they are, since float32 takes more memory.
NARROW = ("bool", "int8", "uint8", "int16")


@dataclass(frozen=True)
class ColumnOptions:
    """What the config says of columns.

    Attributes:
        kinds: of columns by name: number, category, text, date or drop.
        missing: texts that mean a missing value; None: the usual ones.
        decimal: the decimal mark of numbers in text; None: it is detected.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] | None = None
    decimal: Decimal | None = None


DEFAULTS = ColumnOptions()


class Column(BaseModel):
    """How one raw column becomes features.

    number: (x - mean) / std; a missing value is the mean, marked in a 0/1 column if training rows had any. `reading`
        says how text becomes numbers, where the column was text in training. Dates end at `FAR`, as 0001-01-01 and
        9999-12-31 do.
    category: one column per value of training, and one for all other or missing values.
    hashed: one column per bucket, and 1 in the bucket of the value's CRC-32 (Weinberger et al., 2009, eq. 2 without
        the sign); 0 everywhere for a missing value.
    words: the same for each word of a text in lower case.
    tensor: as number, per element for [rows, n], over all elements for more dimensions.
    ready: unchanged. Where it is ragged, the first dimension differs from row to row, and `shape` is of the longest.

    Values that `missing` names, as text or as a number, are missing.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = "float64"
    mean: list[float] | float = 0.0
    std: list[float] | float = 1.0
    has_missing: bool = False
    categories: tuple[str, ...] = ()
    reading: Reading | None = None
    missing: tuple[str, ...] = ()
    is_ragged: bool = False

    @property
    def is_date(self) -> bool:
        return self.dtype.startswith("datetime") or (self.reading is not None and self.reading.kind == "date")

    @cached_property
    def _scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation as arrays: of 1,000 numbers it takes longer to make them than to use them."""
        return np.asarray(self.mean), np.asarray(self.std)

    @property
    def width(self) -> int:
        """How many features it becomes."""
        if self.kind == "category":
            return len(self.categories) + 1
        if self.kind in ("hashed", "words"):
            return BUCKETS
        return int(np.prod(self.shape)) + self.has_missing

    def field(self, is_target: bool = False) -> Field:
        """Return what it is in a packed row."""
        if self.kind != "ready":
            return Field(self.name, "float32", self.shape if self.kind == "tensor" else (self.width,))
        dtype = STORED_AS.get(self.dtype, self.dtype)
        if not (is_target and self.is_ragged):
            return Field(self.name, dtype, self.shape, self.is_ragged)
        is_whole = np.dtype(dtype).kind in "iu"
        return Field(self.name, "int64" if is_whole else dtype, self.shape, True, IGNORED if is_whole else 0)

    def packed(self, values: np.ndarray) -> np.ndarray:
        """Return values [n, ...] as `Packing` takes them; cells of a frame may be lists."""
        if self.kind != "ready":
            return self.features(values)
        if not len(values):
            return np.zeros((0, *self.shape), dtype=self.field().dtype)
        if values.dtype != object:
            return values
        cells = as_ragged([np.asarray(cell) for cell in values])
        return cells if self.is_ragged else np.stack(list(cells))

    def features(self, values: np.ndarray) -> np.ndarray:
        """Return [rows, columns], or [rows, ...] for a tensor of more dimensions."""
        if self.kind == "ready":
            if values.dtype == np.uint16:
                # Token ids: half the size of int64, and torch has few operations for uint16.
                return values.astype(np.int32)
            return values.astype(np.float32) if values.dtype.kind in "fub" else values.astype(np.int64)
        values = blanked(values, self.missing)
        if self.kind == "category":
            return self._one_hot(values)
        if self.kind in ("hashed", "words"):
            return hashed(as_texts(values, self.name), by_word=self.kind == "words")
        numbers = self.read(values)
        if numbers.shape[1:] != self.shape:
            raise DataError(
                f"column '{self.name}' has shape {numbers.shape[1:]} per row: the model was trained on {self.shape}"
            )
        mean, std = self._scaling
        scaled = ((numbers - mean) / std).astype(np.float32)
        missing = np.isnan(scaled)
        scaled[missing] = 0.0
        if self.is_date:
            np.clip(scaled, -FAR, FAR, out=scaled)
        if self.kind == "tensor":
            return np.asarray(scaled)
        parts = [scaled[:, None], missing[:, None].astype(np.float32)]
        return np.concatenate(parts if self.has_missing else parts[:1], axis=1)

    def read(self, values: np.ndarray) -> np.ndarray:
        """Return the numbers of a column of numbers, float64; NaN where there is none, or none can be read."""
        values = blanked(values, self.missing)
        if values.dtype.kind in "US" or (values.dtype == object and values.ndim == 1):
            return read_cells(values.astype(object), self.reading or PLAIN)
        return as_numbers(values)

    def misfits(self, values: np.ndarray) -> np.ndarray:
        """Return which values [n] are there and mean nothing to this column: no number, or none of the categories."""
        values = blanked(values, self.missing)
        if self.kind == "number" and values.dtype.kind in "OUS" and values.ndim == 1:
            texts = values.astype(object)
            are_texts = np.array([isinstance(value, str) for value in texts], dtype=bool)
            unread = are_texts & np.isnan(read_cells(texts, self.reading or PLAIN))
            unread[unread] = ~is_missing_text(texts[unread])
            return np.asarray(unread)
        if self.kind == "category":
            texts, known = as_texts(values, self.name), set(self.categories)
            return np.array([text is not None and text not in known for text in texts], dtype=bool)
        return np.zeros(len(values), dtype=bool)

    def _one_hot(self, values: np.ndarray) -> np.ndarray:
        numbers = {category: number for number, category in enumerate(self.categories)}
        texts = as_texts(values, self.name)
        index = np.fromiter((numbers.get(text, len(numbers)) for text in texts), np.int64, len(texts))
        return np.eye(len(numbers) + 1, dtype=np.float32)[index]


class Transform(BaseModel):
    """Columns to features and label to targets, as fitted.

    Attributes:
        columns: of the features, in order.
        label: with an empty name where there is no column to predict.
        tokenizer: of rows of tokens, as JSON.
        shape: to which flat rows are reshaped.
        image_bits: that values of 16-bit images use.
        input_tree: how the columns are in what the model takes, where that is more than one array of numbers, or
            ragged; None: the columns are joined to one array.
        target_columns: that are compared with as they are; none where the label is a class or a number.
        target_tree: how these are in the targets.
        collate: a user's own function that makes the inputs and targets of a batch.
        weight: of samples; None: all are 1.
        audio: how recordings become rows, and which units the targets are.
    """

    model_config = ConfigDict(frozen=True)
    columns: tuple[Column, ...]
    label: Label
    tokenizer: str | None = None
    shape: tuple[int, ...] | None = None
    image_bits: int | None = None
    input_tree: Template | None = None
    target_columns: tuple[Column, ...] = ()
    target_tree: Template | None = None
    collate: str | None = None
    weight: Weight | None = None
    audio: AudioFormat | None = None

    @property
    def has_label(self) -> bool:
        """Whether there is a column to predict."""
        return self.label.name != ""

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the classes of boxes; none where the label is no boxes."""
        return tuple(map(str, self.label.classes)) if self.target_columns else ()

    @property
    def vocabulary(self) -> int:
        """The number of token ids; 0 if rows are not tokens."""
        return tokenizer_from_json(self.tokenizer).vocabulary if self.tokenizer else 0

    @property
    def narrow(self) -> Column | None:
        """The one column whose rows are kept in their own type and widened batch by batch; None: there is none."""
        only = self.columns[0]
        if self.input_tree is not None or len(self.columns) > 1 or only.kind not in ("tensor", "ready"):
            return None
        return only if only.dtype in NARROW else None

    @property
    def is_stored_as_taken(self) -> bool:
        """Whether a model takes rows as they are stored: they are not narrow, packed or collated."""
        return not (self.narrow or self.input_tree or self.target_tree or self.collate or self.weight)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of what the model takes as one sample; of several arrays, how many numbers they are together."""
        if self.shape:
            return self.shape
        only = self.columns[0]
        if self.input_tree is not None and not isinstance(self.input_tree, str):
            return (sum(int(np.prod(column.field().shape)) for column in self.columns),)
        if self.tokenizer and not self.has_label:
            return (only.shape[0] - 1,)  # the last token of a row is a target only
        if len(self.columns) == 1 and only.kind in ("tensor", "ready"):
            return only.shape
        return (sum(column.width for column in self.columns),)

    @property
    def input_shapes(self) -> Any:
        """The shapes of a sample's arrays, in the tree in which the model takes them."""
        if self.input_tree is None:
            return self.input_shape
        shapes = {column.name: column.field().shape for column in self.columns}
        return fill(self.input_tree, shapes.__getitem__)

    @property
    def described_inputs(self) -> str:
        """What a sample is, in words."""
        fields = [column.field() for column in self.columns[:10]]
        some = ", ".join(
            f"{field.name} {['any', *field.shape[1:]] if field.is_ragged else list(field.shape)}"
            for field in fields
        )
        return (
            f"several arrays ({some})"
            if len(self.columns) > 1
            else f"an array of a length of its own ({some})"
        )

    @property
    def outputs(self) -> int:
        """How many numbers the model must return per sample, per token, or per piece of a recording."""
        if self.audio is not None:
            return self.audio.tokenizer.vocabulary
        if self.categories:
            return len(self.categories)
        if self.target_columns:
            return sum(int(np.prod(column.shape)) for column in self.target_columns)
        if self.has_label or self.tokenizer:
            return len(self.label.classes) or (1 if self.has_label else self.vocabulary)
        return int(np.prod(self.input_shape))  # the model is to return its inputs

    def features(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return [rows, *input_shape], float32 (or an integer type where the data is ready and of integers).

        Raises:
            DataError: a column is missing.
        """
        self.check_columns(self.columns, block)
        parts = [column.features(block[column.name]) for column in self.columns]
        if len(parts) == 1 and not self.shape:
            return np.ascontiguousarray(parts[0])
        rows = np.concatenate([as_matrix(part) for part in parts], axis=1)
        return rows.reshape(-1, *self.shape) if self.shape else rows

    def stored(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what rows are kept as: `features`, or `narrow` ones in their own type and the shape of `features`.

        Raises:
            DataError: as `features`.
        """
        if self.input_tree is not None:
            return self._packed(self.columns, block, is_target=False)
        column = self.narrow
        values = block[column.name] if column is not None and column.name in block else None
        if column is None or values is None or values.shape[1:] != column.shape:
            return self.features(block)
        if not np.can_cast(values.dtype, column.dtype):
            return self.features(block)  # numbers of a wider type than in training
        return np.ascontiguousarray(values.astype(column.dtype, copy=False)).reshape(-1, *self.input_shape)

    def targets(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return [rows] targets; [rows, 0] where there is no label; with their weights, where samples have any.

        Raises:
            DataError: the label is missing or unknown, or weights are missing.
        """
        targets = self._targets(block)
        if self.weight is None:
            return targets
        if self.weight.name not in block:
            raise DataError(
                f"weight column '{self.weight.name}' is missing{nearest(self.weight.name, block)}: the columns are "
                f"{', '.join(block)}"
            )
        return with_weights(
            targets, as_numbers(block[self.weight.name].reshape(len(targets))) / self.weight.mean
        )

    def _targets(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        if not self.has_label:
            return np.zeros((len(next(iter(block.values()))), 0), dtype=np.float32)
        if self.target_tree is not None:
            return self._packed(self.target_columns, block, is_target=True)
        if self.label.name not in block:
            raise DataError(
                f"label column '{self.label.name}' is missing{nearest(self.label.name, block)}: "
                f"the columns are {', '.join(block)}"
            )
        return self.label.targets(block[self.label.name])

    def stretched(self, block: Mapping[str, np.ndarray]) -> "Transform":
        """Return the transform for rows of which some may be longer than those of training."""

        def fitting(column: Column) -> Column:
            if not (column.is_ragged and column.name in block):
                return column
            longest = max(self._lengths(column, block), default=0)
            shape = (max(column.shape[0], int(longest)), *column.shape[1:])
            return column if shape == column.shape else column.model_copy(update={"shape": shape})

        columns, targets = (tuple(map(fitting, some)) for some in (self.columns, self.target_columns))
        if (columns, targets) == (self.columns, self.target_columns):
            return self
        return self.model_copy(update={"columns": columns, "target_columns": targets})

    def _lengths(self, column: Column, block: Mapping[str, np.ndarray]) -> Iterable[int]:
        """Return how many entries each row of a column has, once it is packed."""
        if self.audio is not None and column in self.columns:
            return [self.audio.frames(len(wave)) for wave in block[column.name]]
        return list(lengths_of(column.packed(block[column.name])))

    def packing(self, is_target: bool = False) -> Packing:
        """Return the layout of packed inputs, or of packed targets."""
        columns = self.target_columns if is_target else self.columns
        return Packing([column.field(is_target) for column in columns])

    def _packed(
        self, columns: tuple[Column, ...], block: Mapping[str, np.ndarray], is_target: bool
    ) -> np.ndarray:
        self.check_columns(columns, block)
        found = {c.name: c.packed(block[c.name]) for c in columns}
        if self.audio is not None and not is_target:
            found = {name: as_spectrograms(self.audio, waves) for name, waves in found.items()}
        return self.packing(is_target).pack(found)

    @staticmethod
    def check_columns(columns: tuple[Column, ...], block: Mapping[str, np.ndarray]) -> None:
        """Refuse rows without a column.

        Raises:
            DataError: with its name.
        """
        missing = next((column.name for column in columns if column.name not in block), None)
        if missing is not None:
            raise DataError(
                f"column '{missing}' is missing{nearest(missing, block)}: the model needs "
                f"{', '.join(column.name for column in columns[:20])}"
            )
