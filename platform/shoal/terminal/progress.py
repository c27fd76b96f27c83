"""The progress of a run or a sweep, while it lasts."""

import sys
import time
from collections import deque
from typing import Any, TextIO

from shoal.terminal.tables import duration, params_text, running_rows, terminal_columns

LIVE_S = 0.2
PLAIN_S = 10.0
RATE_S = 10.0
SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/rmse")


class ProgressLine:
    """One live line on a terminal; a plain line now and then elsewhere."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out, self._is_live = out, out.isatty()
        self._shown_s, self._shown_step = 0.0, -1
        self._seen: deque[tuple[float, int]] = deque()
        self._note = ""

    def __call__(self, status: Any) -> None:
        """Show a `shoal.workflows.train.Status`."""
        now = time.monotonic()
        if status.note != self._note:
            self._note = status.note
            self._end_line()
            self._write(status.note + " ...", end="\n")
            return
        if status.is_training and (not self._seen or status.step != self._seen[-1][1]):
            self._seen.append((now, status.step))
        while self._seen and now - self._seen[0][0] > RATE_S:
            self._seen.popleft()
        is_last = status.step == status.steps and self._shown_step != status.step
        pause = LIVE_S if self._is_live else PLAIN_S
        if status.step == self._shown_step or (now - self._shown_s < pause and not is_last):
            return
        self._shown_s, self._shown_step = now, status.step
        self._write(self._text(status, now), end="" if self._is_live else "\n")

    def close(self) -> None:
        self._end_line()

    def _text(self, status: Any, now: float) -> str:
        if not status.step:
            return f"starting; {status.steps} steps to go"
        if not status.is_training:
            return f"resuming; step {status.step} of {status.steps} was reached before"
        parts = [f"step {status.step}/{status.steps}"]
        shown = [name for name in SHOWN if name in status.metrics]
        parts += [f"{name} {status.metrics[name]:.4g}" for name in shown]
        steps_per_s = self._rate()
        if steps_per_s:
            parts.append(f"{steps_per_s:.{0 if steps_per_s >= 10 else 1}f} steps/s")
            if status.step < status.steps:
                parts.append(f"ETA {duration((status.steps - status.step) / steps_per_s)}")
        return "  ".join(parts)

    def _rate(self) -> float:
        """Steps per second over the last RATE_S seconds; 0 when there is too little to tell."""
        if not self._seen:
            return 0.0
        (since, first), (until, last) = self._seen[0], self._seen[-1]
        return (last - first) / (until - since) if until - since > 0.2 else 0.0

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[2K" if self._is_live else ""
        if self._is_live:
            text = text[: max(20, terminal_columns() - 1)]
        self._out.write(start + text + end)
        self._out.flush()

    def _end_line(self) -> None:
        if self._is_live and self._shown_step >= 0:
            self._out.write("\n")
            self._out.flush()
            self._shown_step = -1


class SweepTable:
    """A sweep as it runs: a live table on a terminal, a line for each trial that ends elsewhere."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out, self._is_live = out, out.isatty()
        self._shown_s, self._height, self._note = 0.0, 0, ""
        self._told: set[str] = set()

    def __call__(self, status: Any) -> None:
        """Show a `shoal.workflows.tune.sweep.SweepStatus`."""
        now = time.monotonic()
        if status.note and status.note != self._note:
            self._note = status.note
            self.close()
            print(status.note + " ...", file=self._out, flush=True)
        elif self._is_live and now - self._shown_s > LIVE_S:
            self._shown_s = now
            self._redraw([_sweep_line(status), *map(_running_line, running_rows(status))])
        elif not self._is_live:
            self._tell_ended(status)

    def close(self) -> None:
        """Leave what is shown where it is."""
        self._height = 0

    def _redraw(self, lines: list[str]) -> None:
        up = f"\x1b[{self._height}A" if self._height else ""
        width = max(20, terminal_columns() - 1)
        self._out.write(up + "".join(f"\x1b[2K{line[:width]}\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._height = len(lines)

    def _tell_ended(self, status: Any) -> None:
        for row in status.rows:
            if row.status not in ("running", "paused", "pending") and row.name not in self._told:
                self._told.add(row.name)
                value = f"{status.metric} {row.metric:.4g}" if row.metric is not None else row.reason or ""
                print(
                    f"{row.name} {row.status:<10} {value}  {params_text(row.params)}  ({_sweep_line(status)})",
                    file=self._out,
                    flush=True,
                )


def _sweep_line(status: Any) -> str:
    ended = [row for row in status.rows if row.status not in ("running", "paused", "pending")]
    parts = [f"{len(ended)}/{status.total} trials", f"{status.running} running"]
    if status.best is not None:
        parts.append(f"best {status.best.name} {status.metric} {status.best.metric:.4g}")
    if ended and len(ended) < status.total:
        parts.append(f"ETA {duration(status.seconds / len(ended) * (status.total - len(ended)))}")
    return "  ".join(parts)


def _running_line(row: Any) -> str:
    value = f"{row.metric:.4g}" if row.metric is not None else "..."
    return f"  {row.name}  step {row.steps}  {value}  {params_text(row.params)}"
