"""The folder that a batch prediction writes: part files that are whole or absent, rejected rows, and its state.

    OUTPUT/part-00003-00001.parquet     the second slice of the fourth fragment of the input; names sort as the rows do
    OUTPUT/_rejected.jsonl              rows that could not be predicted, with their number in the input and the reason
    OUTPUT/_predict.json                of which model and input these are, and how many rows

While it is written, `_fragment-N.json` says that a fragment is complete, and `_rejected-N-M.jsonl` has the rejected
rows of a slice. Names that begin with _ are no data to other readers either.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from shoal.data.packing import is_ragged
from shoal.data.sources.base import Block
from shoal.errors import DataError
from shoal.storage.folder import Folder

Format = Literal["parquet", "jsonl", "csv"]
STATE, REJECTED = "_predict.json", "_rejected.jsonl"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Done:
    """What became of rows.

    Attributes:
        rows: that were read.
        rejected: of these, how many could not be predicted.
        parts: files.
    """

    rows: int = 0
    rejected: int = 0
    parts: int = 0

    def __add__(self, other: "Done") -> "Done":
        return Done(self.rows + other.rows, self.rejected + other.rejected, self.parts + other.parts)


@dataclass(frozen=True)
class Reject:
    """A row that could not be predicted.

    Attributes:
        row: its number in the block.
        reason: why.
        cells: its other columns.
    """

    row: int
    reason: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class State:
    """What a folder holds predictions of; a restart with another model or input is refused.

    Attributes:
        model: digest.
        input: the source and its fingerprint.
        settings: format and parameters.
        relearned: (file, column) of CSV files, whose samples did not show all types.
        done: of all rows, once it is finished.
    """

    model: str
    input: tuple[str, str]
    settings: dict[str, Any]
    relearned: list[tuple[str, str]] = field(default_factory=list)
    done: Done | None = None

    @classmethod
    def parse(cls, data: bytes) -> "State":
        """Read what `write` has written."""
        found = json.loads(data)
        done = found.pop("done")
        found["input"] = tuple(found["input"])
        found["relearned"] = [(file, column) for file, column in found["relearned"]]
        return cls(**found, done=Done(**done) if done else None)


class Output:
    """An output folder, on a disk or in an object store."""

    def __init__(self, uri: str, form: Format) -> None:
        self.uri, self._form = uri, form
        self._folder = Folder(uri)

    def open(self, state: State) -> State:
        """Begin, or go on with what a killed job has left; returns the state to go on from.

        Raises:
            DataError: the folder holds something else, or predictions of another model, input or setting.
            StorageError: it cannot be written.
        """
        names = self._folder.names()
        if STATE not in names:
            if names:
                raise DataError(
                    f"OUTPUT '{self.uri}' holds other files (e.g. '{names[0]}'): name a new or an empty folder"
                )
            self._folder.create()
            self.write_state(state)
            return state
        try:
            found = State.parse(self._folder.read(STATE))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"'{self.uri}/{STATE}' is damaged ({type(error).__name__}: {error}): remove the folder, or name "
                "another OUTPUT"
            ) from None
        for what, was, now in (
            ("model", found.model, state.model),
            ("input", found.input, state.input),
            ("settings", found.settings, state.settings),
        ):
            if was != now:
                raise DataError(
                    f"OUTPUT '{self.uri}' holds predictions of other {what} ({was}, not {now}): name another OUTPUT, "
                    "or remove that folder"
                )
        return found

    def write_state(self, state: State) -> None:
        self._folder_write(STATE, json.dumps(asdict(state), indent=1).encode())

    def clear(self) -> None:
        """Remove all but the state: columns are read as other types than those of the files that are there."""
        for name in self._folder.names():
            if name != STATE:
                self._folder.delete(name)

    def clear_scratch(self) -> None:
        self._folder.clear_scratch()

    def names(self) -> set[str]:
        return set(self._folder.names())

    def part(self, fragment: int, number: int) -> str:
        """Return the name of the file of a slice."""
        return f"part-{fragment:05d}-{number:05d}.{self._form}"

    def write_slice(
        self, fragment: int, number: int, table: pa.Table | None, rejects: list[Reject], first: int
    ) -> None:
        """Write the rows of a slice; the part file, which says that it is complete, last.

        Args:
            table: of the rows that were predicted; None: there are none.
            first: number in the fragment of the first row.
        """
        if rejects:
            lines = [{"row": first + one.row, "reason": one.reason, **_plain(one.cells)} for one in rejects]
            text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
            self._folder_write(_rejects(fragment, number), text.encode())
        if table is not None:
            self._folder_write(self.part(fragment, number), to_bytes(table, self._form))

    def count_rejects(self, fragment: int, number: int) -> int:
        """Return how many rows of a slice were rejected."""
        data = self._folder.poll(_rejects(fragment, number), most_tries=None)
        return len(data.splitlines()) if data else 0

    def write_fragment(self, fragment: int, done: Done) -> None:
        self._folder_write(_marker(fragment), json.dumps(asdict(done)).encode())

    def fragment(self, number: int) -> Done | None:
        """Return what became of a fragment's rows; None: it is not complete."""
        data = self._folder.poll(_marker(number), most_tries=None)
        return Done(**json.loads(data)) if data else None

    def finish(self, state: State, count: int) -> State:
        """Join the rejected rows, number them as in the whole input, and remove what a restart would need."""
        first, done, lines = 0, Done(), []
        names = sorted(name for name in self._folder.names() if name.startswith("_rejected-"))
        for number in range(count):
            own = self.fragment(number)
            assert own is not None, "all fragments are complete"
            lines += [
                line
                for name in names
                if name.startswith(_rejects(number))
                for line in self._moved(name, first)
            ]
            first, done = first + own.rows, done + own
        if lines:
            self._folder_write(REJECTED, b"".join(lines))
        finished = State(state.model, state.input, state.settings, state.relearned, done)
        self.write_state(finished)
        self.remove_markers()
        return finished

    def remove_markers(self) -> None:
        for name in self._folder.names():
            if name.startswith(("_fragment-", "_rejected-")):
                self._folder.delete(name)

    def _folder_write(self, name: str, data: bytes) -> None:
        self._folder.write(name, data)

    def _moved(self, name: str, first: int) -> Iterator[bytes]:
        for line in self._folder.read(name).splitlines():
            row = json.loads(line)
            yield json.dumps(row | {"row": row["row"] + first}).encode() + b"\n"


def _marker(fragment: int) -> str:
    return f"_fragment-{fragment:05d}.json"


def _rejects(fragment: int, number: int | None = None) -> str:
    return f"_rejected-{fragment:05d}-" + ("" if number is None else f"{number:05d}.jsonl")


def _plain(cells: dict[str, Any]) -> dict[str, Any]:
    """Return cells as JSON has them; pixels and bytes are left out."""
    found = {}
    for name, value in cells.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float) and value != value:
            value = None
        if not isinstance(value, bytes | np.ndarray | dict):
            found[name] = value
    return {"columns": found}


def as_table(block: Block) -> pa.Table:
    """Turn columns into an Arrow table: NaN and None are null, arrays of one shape lists of a fixed size."""
    return pa.table({name: _column(values) for name, values in block.items()})


def _column(values: np.ndarray) -> pa.Array:
    if is_ragged(values):
        return pa.array([array.tolist() for array in values])
    if values.ndim > 1 and values.dtype != object:
        column = pa.array(np.ascontiguousarray(values).reshape(-1))
        for size in values.shape[:0:-1]:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        return column
    if values.dtype.kind == "U":
        return pa.array(values.tolist())
    if values.dtype == object:
        try:
            return pa.array(list(values), from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of several types
            return pa.array([None if value is None or value != value else str(value) for value in values])
    return pa.array(values, from_pandas=True)


def to_bytes(table: pa.Table, form: Format) -> bytes:
    """Return a table as the content of a file."""
    sink = pa.BufferOutputStream()
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, sink)
    elif form == "csv":
        import pyarrow.csv as arrow_csv

        arrow_csv.write_csv(_flat(table), sink)
    else:
        text = table.to_pandas().to_json(orient="records", lines=True, double_precision=15, date_format="iso")
        return str(text).encode()
    return bytes(sink.getvalue())


def _flat(table: pa.Table) -> pa.Table:
    """Return a table as CSV can hold it: a column for each probability, other lists as JSON."""
    columns: dict[str, pa.Array] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name == PROBABILITIES and pa.types.is_fixed_size_list(column.type):
            classes = json.loads((table.schema.metadata or {}).get(b"shoal.classes", b"[]"))
            flat = np.asarray(column.flatten()).reshape(len(column), -1)
            names = classes if len(classes) == flat.shape[1] else range(flat.shape[1])
            columns |= {f"probability_{label}": pa.array(flat[:, at]) for at, label in enumerate(names)}
        elif pa.types.is_nested(column.type):
            columns[name] = pa.array(
                [None if cell is None else json.dumps(cell) for cell in column.to_pylist()]
            )
        else:
            columns[name] = column
    return pa.table(columns)
