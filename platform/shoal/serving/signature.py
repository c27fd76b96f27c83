"""What a model takes and returns, read from its own transform: for validation, OpenAPI and the page alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from shoal.data.preprocessing import Column, Transform
from shoal.inference.predictor import Predictor
from shoal.inference.recordings import as_base64
from shoal.inference.rows import TEXT
from shoal.tasks.registry import TASKS

LARGEST_EXAMPLE = 4096  # numbers of an array that is written out

# V2's names of NumPy's types.
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip

FieldKind = Literal["number", "date", "category", "text", "array"]


@dataclass(frozen=True)
class Field:
    """A column that a model takes.

    Attributes:
        column: of the transform; None: text that is tokenized, or an encoded recording.
        shape: of an array; the first dimension of a ragged one is the longest.
        choices: the values of training, of a category.
        sample: a text that is accepted.
    """

    name: str
    kind: FieldKind
    column: Column | None = None
    sample: str = "some text"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.column.shape if self.column is not None and self.kind == "array" else ()

    @property
    def is_ragged(self) -> bool:
        return self.column is not None and self.column.is_ragged

    @property
    def choices(self) -> tuple[str, ...]:
        return self.column.categories if self.column is not None else ()

    @property
    def takes_text(self) -> bool:
        """Whether values may be texts."""
        return self.kind in ("date", "category", "text") or (
            self.column is not None and self.column.reading is not None
        )

    @property
    def datatype(self) -> str:
        """V2's name of the type of its values."""
        if self.kind == "array" and self.column is not None:
            return DATATYPES.get(self.column.dtype, "FP64")
        return "FP64" if self.kind == "number" else "BYTES"

    @property
    def example(self) -> Any:
        """A value that is accepted; None for an array that is too large to be written out."""
        if self.kind == "array":
            return _filled(self.shape) if np.prod(self.shape) <= LARGEST_EXAMPLE else None
        if self.kind == "number" and self.column is not None:
            mean = float(np.mean(self.column.mean))
            return bool(round(mean)) if self.column.dtype == "bool" else float(f"{mean:.4g}")
        if self.kind == "date":
            return "2026-01-31"
        return self.choices[0] if self.choices else self.sample

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a value."""
        if self.kind == "array":
            whole = self.column is not None and np.dtype(self.column.dtype).kind in "iu"
            found: dict[str, Any] = {"type": "integer" if whole else "number"}
            for place, size in reversed(list(enumerate(self.shape))):
                bounds = (
                    {"maxItems": size}
                    if self.is_ragged and not place
                    else {"minItems": size, "maxItems": size}
                )
                found = {"type": "array", "items": found, **bounds}
            return found
        if self.kind == "category":
            known = {"examples": list(self.choices[:20])} if self.choices else {}
            return {"type": ["string", "number", "boolean", "null"], **known}
        if self.kind == "number":
            is_bool = self.column is not None and self.column.dtype == "bool"
            return {"type": ["number", *["boolean"] * is_bool, *["string"] * self.takes_text, "null"]}
        return {"type": ["string", "null"] if self.column is not None else "string"}

    def described(self) -> dict[str, Any]:
        """Return what the page needs to make an input of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "choices": list(self.choices),
            "example": self.example,
        }


@dataclass(frozen=True)
class Signature:
    """What a model takes and returns.

    Attributes:
        task: as in a config.
        fields: the columns that it takes, in order.
        classes: of the label, in the order of `probabilities`; empty if there are none.
        params: of a prediction besides the rows, with their defaults.
    """

    task: str
    fields: tuple[Field, ...]
    classes: tuple[bool | int | str, ...]
    params: Mapping[str, Any]

    @classmethod
    def of(cls, predictor: Predictor) -> "Signature":
        """Read it from a loaded model."""
        transform = predictor.transform
        return cls(predictor.task.name, _fields(transform), transform.label.classes, predictor.params)

    @cached_property
    def by_name(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    @property
    def only(self) -> Field | None:
        """The one field that values without a column's name are of; None: there are several."""
        return self.fields[0] if len(self.fields) == 1 else None

    @property
    def finds_boxes(self) -> bool:
        return TASKS[self.task].takes_boxes

    @property
    def continues_text(self) -> bool:
        return "max_new_tokens" in self.params

    @property
    def example(self) -> dict[str, list[Any]] | None:
        """A row that is accepted, as columns; None: it is too large to be written out."""
        found = {field.name: [field.example] for field in self.fields}
        return None if any(values == [None] for values in found.values()) else found


def _fields(transform: Transform) -> tuple[Field, ...]:
    if transform.tokenizer:
        return (Field(TEXT, "text"),)
    if transform.audio is not None:
        silence = np.zeros(transform.audio.rate // 10, dtype=np.int16)
        return (Field(transform.columns[0].name, "text", sample=as_base64(silence, transform.audio.rate)),)
    return tuple(Field(column.name, _kind_of(column), column) for column in transform.columns)


def _kind_of(column: Column) -> FieldKind:
    if column.kind in ("tensor", "ready"):
        return "array"
    if column.kind == "number":
        return "date" if column.is_date else "number"
    return "category" if column.kind == "category" else "text"


def _filled(shape: tuple[int, ...]) -> Any:
    return 0 if not shape else [_filled(shape[1:]) for _ in range(shape[0])]
