"""What the columns of a data set were understood as: summaries for a person, and the lines that warn of what is odd.

Depends on `statistics` and `preprocessing`; independent of labels, splits and files.
"""

import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from shoal.data.array_stats import ArrayStats
from shoal.data.audio import BANDS, AudioFormat
from shoal.data.preprocessing import MAX_CATEGORIES, Column, ColumnOptions
from shoal.data.statistics import UNKNOWN, ColumnStats
from shoal.data.values import BUCKETS
from shoal.errors import DataError, nearest

ID_NAME = re.compile(
    r"(?:^|[_\W])(?:id|ids|uuid|guid|index|idx|rowid|rownum|row|nr|no|number|key)$|^unnamed|^column_1$|^$",
    re.I,
)
CAMEL_ID = re.compile(r"[a-z](?:Id|ID|Key|Index|No|Nr)$")
NAMED = 5  # columns that a line names


class ColumnSummary(BaseModel):
    """One column of the training rows, as `--check` and the data report show it.

    Attributes:
        kind: what it was understood as, e.g. "number", "category", "number with a decimal comma", "dropped".
        missing: cells without a value.
        unreadable: cells with a value that the kind cannot use.
        odd: one of them, else a text that stands for a missing value.
        is_text: the cells are text.
        distinct: how many values differ, estimated above 1,024; None: it was not counted.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    kind: str
    missing: int = 0
    unreadable: int = 0
    odd: str | None = None
    distinct: int | None = None
    is_constant: bool = False
    looks_like_an_id: bool = False
    is_ambiguous: bool = False
    is_text: bool = False


def fit_columns(
    stats: Mapping[str, ColumnStats | ArrayStats],
    options: ColumnOptions,
    source: str,
    reader_drops: bool = False,
) -> tuple[tuple[Column, ...], tuple[ColumnSummary, ...]]:
    """Fit the transform of each column that is not dropped; also returns what is known of all.

    Args:
        stats: of the columns by name.
        options: what the config says of columns.
        source: for messages.
        reader_drops: columns that are dropped were known to the reader, which left them out.

    Raises:
        DataError: `data.columns` names one that is not there, or a kind that a column is not; or all are dropped.
    """
    dropped = {name for name, kind in options.kinds.items() if kind == "drop"}
    for name in options.kinds:
        if name not in stats and (name not in dropped or not reader_drops):
            raise DataError(
                f"data.columns names '{name}', which is no column of '{source}'{nearest(name, stats)}: its columns "
                f"are {', '.join(list(stats)[:20])}"
            )
    kept = {name: found for name, found in stats.items() if name not in dropped}
    if not kept:
        raise DataError(f"data.columns drops every column of '{source}': leave at least one")
    columns = tuple(found.fit(name, options) for name, found in kept.items())
    by_name = {column.name: column for column in columns}
    return columns, tuple(_summary(name, found, by_name.get(name)) for name, found in stats.items())


def _summary(name: str, stats: ColumnStats | ArrayStats, column: Column | None) -> ColumnSummary:
    if column is None:
        return ColumnSummary(name=name, kind="dropped", missing=getattr(stats, "missing", 0))
    if isinstance(stats, ArrayStats):
        return ColumnSummary(
            name=name, kind=_shaped("ready, padded to" if column.is_ragged else "ready", stats)
        )
    if stats.text is not None:
        return _summary_of_text(stats, column)
    numbers = stats.numbers
    assert numbers is not None
    is_single = stats.kind == "number"
    is_named = is_single and looks_like_an_id_name(name) and numbers.lowest is not None
    return ColumnSummary(
        name=name,
        kind=_kind_of_numbers(stats),
        missing=stats.missing - numbers.infinite,
        unreadable=numbers.infinite,
        odd="inf" if numbers.infinite else None,
        distinct=numbers.sketch.distinct if is_single else None,
        is_constant=stats.rows > 1 and numbers.is_constant,
        looks_like_an_id=is_single
        and (numbers.are_row_numbers or (is_named and numbers.sketch.are_all_different)),
    )


def _summary_of_text(stats: ColumnStats, column: Column) -> ColumnSummary:
    text = stats.text
    assert text is not None
    distinct = len(text.counts) if text.counts is not None else text.sketch.distinct
    if column.reading is None:
        unknown = text.counts[UNKNOWN] if text.counts and UNKNOWN in column.missing else 0
        return ColumnSummary(
            name=column.name,
            kind={"words": "text, its words hashed", "hashed": "category, hashed"}.get(
                column.kind, column.kind
            ),
            missing=stats.missing + unknown,
            odd=UNKNOWN if unknown else None,
            distinct=distinct,
            is_constant=distinct == 1,
            looks_like_an_id=column.kind == "hashed"
            and distinct >= 0.95 * text.cells
            and text.words <= 1.5 * text.cells,
        )
    readable = text.readable(column.reading)
    return ColumnSummary(
        name=column.name,
        kind=str(column.reading),
        missing=stats.missing + text.tokens,
        unreadable=text.values - readable.count,
        odd=readable.odd or text.token,
        is_text=True,
        distinct=distinct,
        is_constant=bool((readable.moments.deviations == 0).all()),
        is_ambiguous=column.reading.is_ambiguous,
    )


def looks_like_an_id_name(name: str) -> bool:
    return bool(ID_NAME.search(name.strip()) or CAMEL_ID.search(name))


def _kind_of_numbers(stats: ColumnStats) -> str:
    if stats.dtype.startswith("datetime"):
        return "date"
    return _shaped("number", stats) if stats.kind == "tensor" else "number"


def _shaped(kind: str, stats: ColumnStats | ArrayStats) -> str:
    return f"{kind} {list(stats.shape)} of {stats.dtype}" if stats.shape else kind


def column_notes(summaries: Sequence[ColumnSummary], rows: int) -> list[str]:
    """Return a line for each thing about columns that a person should know before training."""
    lines = []
    for summary in summaries:
        if summary.unreadable:
            lines.append(
                f"column '{summary.name}' is read as {summary.kind}: {summary.unreadable} of {rows} cells are not "
                f"(e.g. '{summary.odd}') and count as missing"
                + (f"; data.columns={{{summary.name}: category}} keeps them as text" * summary.is_text)
            )
        elif summary.odd == UNKNOWN and not summary.is_text:
            lines.append(
                f"column '{summary.name}': {summary.missing} of {rows} cells are missing ('{UNKNOWN}' among them)"
            )
        elif summary.is_text and summary.kind != "category":
            gaps = f"; {summary.missing} of {rows} cells are missing" if summary.missing else ""
            example = f" (e.g. '{summary.odd}')" if summary.missing and summary.odd else ""
            doubt = ": write years first to be sure" if summary.is_ambiguous else ""
            lines.append(
                f"column '{summary.name}' is text and is read as {summary.kind}{gaps}{example}{doubt}"
            )
    lines += _joined(
        [summary.name for summary in summaries if summary.looks_like_an_id],
        "looks like an id or a row number, which cannot help with other rows: set data.columns={{{name}: drop}}",
        "look like ids or row numbers, which cannot help with other rows: set data.columns={{{name}: drop, ...}}",
    )
    lines += _joined(
        [summary.name for summary in summaries if rows and summary.missing == rows],
        "has no value in any training row: set data.columns={{{name}: drop}}",
        "have no value in any training row: set data.columns={{{name}: drop, ...}}",
    )
    lines += _joined(
        [summary.name for summary in summaries if summary.is_constant and "[" not in summary.kind],
        "has the same value in all training rows",
        "have the same value in all training rows",
    )
    lines += [
        f"column '{summary.name}' has {summary.distinct} different texts, more than {MAX_CATEGORIES}: "
        + ("its words are" if "words" in summary.kind else "they are")
        + f" hashed into {BUCKETS} columns; data.columns={{{summary.name}: drop}} leaves it out"
        for summary in summaries
        if "hashed" in summary.kind and not summary.looks_like_an_id
    ]
    return lines


def _joined(names: list[str], one: str, many: str) -> list[str]:
    """Return one line for any number of columns."""
    if not names:
        return []
    if len(names) == 1:
        return [f"column '{names[0]}' {one.format(name=names[0])}"]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    listed = ", ".join(f"'{name}'" for name in names[:NAMED])
    return [f"columns {listed}{more} {many.format(name=names[0])}"]


def heard(columns: tuple[Column, ...], audio: AudioFormat) -> tuple[Column, ...]:
    """Return the columns of waves as the spectrograms that they become."""
    return tuple(
        column.model_copy(
            update={"shape": (audio.frames(column.shape[0]), BANDS), "dtype": "float16", "is_ragged": True}
        )
        for column in columns
    )


def of_any_length(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return the columns of units, which differ in number even where those of training do not."""
    return tuple(column.model_copy(update={"is_ragged": True}) for column in columns)
