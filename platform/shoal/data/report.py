"""The data report of a run, as Markdown: what was understood, how rows are divided, and what looks odd."""

from collections.abc import Sequence

from shoal.data.dataset_info import DatasetInfo
from shoal.data.sampler import SPLITS
from shoal.data.schema import ColumnSummary
from shoal.plots.markdown import markdown_table

MOST_COLUMNS = 200
MOST_CLASSES = 50


def data_report(source: str, info: DatasetInfo, notes: Sequence[str]) -> str:
    """Return the report.

    Args:
        source: `data.source`.
        info: of its rows.
        notes: what was detected while reading, and what a person should know before training.
    """
    parts = [f"# Data: {source}", f"Fingerprint of the content: `{info.fingerprint}`."]
    parts += ["## Worth knowing", "\n".join(f"- {note}" for note in notes) or "Nothing odd was found."]
    parts += [
        "## Splits",
        markdown_table(("split", "rows"), [(name, f"{info.rows[name]:,}") for name in SPLITS]),
    ]
    if info.class_counts:
        parts += [f"## Classes of `{info.transform.label.name}`", _class_table(info)]
    if info.columns:
        shown = info.columns[:MOST_COLUMNS]
        parts += ["## Columns", markdown_table(COLUMN_HEADER, [column_cells(column) for column in shown])]
        if len(info.columns) > MOST_COLUMNS:
            parts.append(f"{len(info.columns) - MOST_COLUMNS} more columns are not shown.")
    if info.suspects:
        scores = [(found.column, f"{found.score:.1%}") for found in info.suspects[:MOST_COLUMNS]]
        parts += ["## Columns that alone predict the label", markdown_table(("column", "score"), scores)]
    if info.duplicates:
        shares = [(found.split, f"{found.share:.1%}") for found in info.duplicates]
        parts += ["## Held-out rows that are training rows too", markdown_table(("split", "share"), shares)]
    if info.examples:
        names = list(info.examples[0])[:30]
        rows = [tuple(row.get(name, "") for name in names) for row in info.examples]
        parts += ["## Rows", markdown_table(tuple(names), rows)]
    return "\n\n".join(parts) + "\n"


COLUMN_HEADER = ("column", "kind", "missing", "unreadable", "distinct", "")


def column_cells(column: ColumnSummary) -> tuple[str, ...]:
    """Return the cells of a column's row in a table, under `COLUMN_HEADER`."""
    remarks = [("constant", column.is_constant), ("looks like an id", column.looks_like_an_id)]
    return (
        column.name,
        column.kind,
        f"{column.missing:,}" if column.missing else "",
        f"{column.unreadable:,} (e.g. {column.odd})" if column.unreadable else "",
        "" if column.distinct is None else f"{column.distinct:,}",
        ", ".join(text for text, holds in remarks if holds),
    )


def _class_table(info: DatasetInfo) -> str:
    splits = [name for name in SPLITS if name in info.class_counts]
    classes = list(dict.fromkeys(name for split in splits for name in info.class_counts[split]))
    rows = [
        (name, *(f"{info.class_counts[split].get(name, 0):,}" for split in splits))
        for name in classes[:MOST_CLASSES]
    ]
    return markdown_table(("class", *splits), rows)
