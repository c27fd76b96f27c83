"""Golden rows: a few rows of held-out data with the answers that the model gave when it was saved.

Whoever loads the model predicts them again, so that a transform, library or machine that computes something else is an
error before the first answer. They are stored as parquet and JSON. It knows rows and answers; it does not know models.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.data.sources.arrow import table_to_block
from shoal.data.values import as_texts
from shoal.errors import ModelError

ROWS, ANSWERS = "golden_rows.parquet", "golden_answers.json"
COUNT, FEW = 32, 4  # rows; a large model computes few
FEW_ABOVE = 10_000_000  # parameters, of which 32 rows can take seconds
MOST_BYTES = 4 << 20  # of the rows
RELATIVE, ABSOLUTE = (
    1e-3,
    1e-4,
)  # by which other CPUs may differ, in float32; the second of the largest answer
UNDECIDED = 1e-3  # of two probabilities that are so close, either may be the larger one
LAYOUT = b"shoal.layout"  # key of the metadata: the type and shape of a row of each column of arrays

Answer = Callable[[Any], pd.DataFrame]


@dataclass(frozen=True)
class Golden:
    """Rows as a caller passes them, and what they were answered.

    Attributes:
        rows: a frame, or the array of a model of one tensor column.
        answers: a row for each.
    """

    rows: Any
    answers: pd.DataFrame

    @classmethod
    def load(cls, folder: Path) -> "Golden | None":
        """Read what is beside the weights; None where an earlier version saved the model."""
        if not (folder / ANSWERS).is_file():
            return None
        answers = json.loads((folder / ANSWERS).read_bytes())
        return cls(_read(folder / ROWS), pd.DataFrame(answers))

    def check(self, answer: Answer, where: Path) -> None:
        """Refuse a model that answers otherwise.

        Args:
            where: of the weights, for messages.

        Raises:
            ModelError: it does, or raises.
        """
        try:
            problem = difference(answer(self.rows), self.answers)
        except Exception as error:
            problem = f"they cannot be predicted ({type(error).__name__}: {error})"
        if problem:
            raise ModelError(
                f"'{where}' does not answer its {len(self.answers)} golden rows ('{ROWS}') as when it was saved: "
                f"{problem}; install the versions of its requirements.txt, or train it again with if_exists=new"
            )


def choose(rows: Any, parameters: int) -> Any:
    """Return the first rows of a frame or an array, fewer where they are large or the model is."""
    row = rows[:1].memory_usage(deep=True).sum() if isinstance(rows, pd.DataFrame) else rows[:1].nbytes
    most = FEW if parameters > FEW_ABOVE else COUNT
    return rows[: max(1, min(most, MOST_BYTES // max(int(row), 1)))]


def save(folder: Path, rows: Any, answer: Answer) -> None:
    """Write rows beside the weights, with the answers to them as they are read again."""
    _write(folder / ROWS, rows)
    answers = answer(_read(folder / ROWS))
    columns = {name: values.tolist() for name, values in answers.items()}
    (folder / ANSWERS).write_text(json.dumps(columns))


def difference(found: pd.DataFrame, expected: pd.DataFrame) -> str | None:
    """Return how answers differ by more than rounding, None: they do not."""
    if list(found.columns) != list(expected.columns) or len(found) != len(expected):
        return f"{list(found.columns)} of {len(found)} rows instead of {list(expected.columns)} of {len(expected)}"
    decided = np.ones(len(expected), dtype=bool)
    if "probabilities" in expected:
        decided = _decided(expected["probabilities"], isinstance(expected["prediction"].iloc[0], list))
    for name in expected.columns:
        differs = _differs(found[name], expected[name])
        if name == "prediction":
            differs &= decided
        if differs.any():
            row = int(differs.argmax())
            here, before = _short(found[name].iloc[row]), _short(expected[name].iloc[row])
            return f"'{name}' of row {row} is {here}, and was {before}"
    return None


def _decided(probabilities: pd.Series, is_multilabel: bool) -> np.ndarray:
    """Return which rows have a prediction that rounding does not change."""
    table = np.array(probabilities.tolist(), dtype=float)
    if is_multilabel:
        return np.asarray((np.abs(table - 0.5) > UNDECIDED).all(axis=1))
    if table.shape[1] < 2:
        return np.ones(len(table), dtype=bool)
    ranked = np.sort(table, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2] > UNDECIDED)


def _differs(found: pd.Series, expected: pd.Series) -> np.ndarray:
    """Return for each row whether it differs."""
    one, other = ([np.asarray(value) for value in column] for column in (found, expected))
    numbers = [value for value in other if value.dtype.kind in "fiu"]
    finite = [np.abs(value[np.isfinite(value)]).max(initial=0.0) for value in numbers]
    slack = ABSOLUTE * max(finite, default=0.0)
    return np.array([not _agree(a, b, slack) for a, b in zip(one, other, strict=True)], dtype=bool)


def _agree(found: np.ndarray, expected: np.ndarray, slack: float) -> bool:
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind in "fiu" and found.dtype.kind in "fiu":
        return bool(np.allclose(found, expected, rtol=RELATIVE, atol=slack, equal_nan=True))
    return bool((found == expected).all())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write(path: Path, rows: Any) -> None:
    is_frame = isinstance(rows, pd.DataFrame)
    columns = {str(name): rows[name] for name in rows.columns} if is_frame else {"": rows}
    layout: dict[str, Any] = {}
    arrays = {}
    for name, values in columns.items():
        cells = list(values) if is_frame else values
        if len(cells) and isinstance(cells[0], np.ndarray):
            layout[name] = {"dtype": str(cells[0].dtype), "shape": [-1, *cells[0].shape[1:]]}
            arrays[name] = pa.array([cell.tobytes() for cell in cells], pa.binary())
        else:
            column = np.asarray(values)
            arrays[name] = pa.array(as_texts(column) if column.dtype == object else column)
    table = pa.table(arrays)
    about = json.dumps({"is_frame": is_frame, "arrays": layout}).encode()
    pq.write_table(table.replace_schema_metadata({LAYOUT: about}), path, compression="zstd")


def _read(path: Path) -> Any:
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[LAYOUT])
    columns: dict[str, Any] = {}
    for name in table.column_names:
        layout = about["arrays"].get(name)
        if layout is None:
            columns[name] = table_to_block(table.select([name]))[name]
            continue
        cells = [
            np.frombuffer(cell, layout["dtype"]).reshape(layout["shape"]).copy()
            for cell in table.column(name).to_pylist()
        ]
        columns[name] = cells if about["is_frame"] else np.stack(cells)
    return pd.DataFrame(columns) if about["is_frame"] else columns[""]
