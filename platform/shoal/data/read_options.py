"""How files are read, as the config says it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """How a user says that files are to be read; None and empty: it is detected.

    Attributes:
        delimiter: between the cells of a CSV file.
        decimal: the decimal mark of numbers in text.
        encoding: of text files, a name that Python knows.
        header: whether the first row of a CSV file names the columns.
        missing: texts that mean a missing value.
        columns: (name, kind) of columns.
        arrays: (column, name in the file) of arrays of .npz files; `train.x` is the column x of the split train.
    """

    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None
    missing: tuple[str, ...] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    arrays: tuple[tuple[str, str], ...] = ()


DETECTED = ReadOptions()
