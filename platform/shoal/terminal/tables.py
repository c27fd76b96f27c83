"""Tables and durations as plain text: the same on a terminal, in a pipe and in a log."""

from collections.abc import Sequence

from shoal.storage.records import TrialRow
from shoal.tune.report.text import value_text


def trial_table(rows: Sequence[TrialRow], metric: str) -> str:
    """Lay out the trials of a sweep, sorted best first by the caller, and the errors of those that failed."""
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    lines = [("trial", "rank", "status", metric, "steps", "seconds", *keys)]
    lines += [_trial_cells(row, rank, keys) for rank, row in enumerate(rows, 1)]
    failures = [
        f"  {row.name} on {row.node or '?'}: {row.error}\n    {row.log}"
        for row in rows
        if row.error is not None
    ]
    return "\n".join([table(lines), *failures])


def _trial_cells(row: TrialRow, rank: int, keys: Sequence[str]) -> tuple[str, ...]:
    is_ranked = row.status in ("finished", "stopped")
    return (
        row.name,
        str(rank) if is_ranked else "",
        row.status,
        "" if row.metric is None else f"{row.metric:.5g}",
        str(row.steps),
        f"{row.seconds:.1f}",
        *(value_text(row.params.get(key, "")) for key in keys),
    )


def duration(seconds: float) -> str:
    """Write 3725 as '1:02:05' and 65 as '1:05'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(rows: Sequence[tuple[str, ...]], is_text: bool = False) -> str:
    """Lay out rows in columns; the first is aligned left, the others right, or left where they are text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    align = str.ljust if is_text else str.rjust
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [align(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
