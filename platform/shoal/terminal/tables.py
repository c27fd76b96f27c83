"""Tables and durations as text."""

import os
from collections.abc import Mapping, Sequence
from typing import Any


def trial_table(rows: Sequence[Any], metric: str) -> str:
    """Lay out the trials of a sweep, best first as given; of those that failed, what is known of it."""
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    lines = [("trial", "rank", "status", metric, "steps", "seconds", *keys)]
    for rank, row in enumerate(rows, 1):
        value = "" if row.metric is None else f"{row.metric:.5g}"
        is_ranked = row.status in ("finished", "stopped")
        params = (_value(row.params.get(key, "")) for key in keys)
        lines.append(
            (
                row.name,
                str(rank) if is_ranked else "",
                row.status,
                value,
                str(row.steps),
                f"{row.seconds:.1f}",
                *params,
            )
        )
    failures = [
        f"  {row.name} on {row.node or '?'}: {row.error}\n    {row.log}"
        for row in rows
        if row.error is not None
    ]
    return "\n".join([table(lines), *failures])


def running_rows(status: Any) -> list[Any]:
    return [row for row in status.rows if row.status == "running"][:8]


def params_text(params: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={_value(value)}" for key, value in params.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Write 3725 as '1:02:05' and 65 as '1:05'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Lay out rows in columns; the first is aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def terminal_columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 80
