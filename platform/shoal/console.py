"""What a job's person sees: progress, warnings, one `error:` line, the result. Only jobs call it."""

import logging
import os
import signal
import sys
import time
import traceback
from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

from shoal.errors import ShoalError

LIVE_S = 0.2
PLAIN_S = 10.0
RATE_S = 10.0
SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/rmse")


def run(main: Callable[[list[str]], int]) -> int:
    """Call a job's main; a ShoalError becomes one line on stderr and its exit code."""
    _warn_on_stderr()
    try:
        return main(sys.argv[1:])
    except ShoalError as error:
        if os.environ.get("SHOAL_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def on_interrupt(stop: Callable[[str], None]) -> None:
    """Call `stop(signal name)` at the first SIGINT or SIGTERM; a second SIGINT ends the process at once."""
    heard: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if heard:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        heard.append(number)
        name = signal.Signals(number).name
        print(f"\n{name}: writing a checkpoint, then stopping", file=sys.stderr, flush=True)
        stop(name)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


class ProgressLine:
    """One live line on a terminal; a plain line now and then elsewhere."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out, self._is_live = out, out.isatty()
        self._shown_s, self._shown_step = 0.0, -1
        self._seen: deque[tuple[float, int]] = deque()
        self._note = ""

    def __call__(self, status: Any) -> None:
        """Show a `shoal.cluster.fit.Status`."""
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
            text = text[: max(20, _columns() - 1)]
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
        """Show a `shoal.cluster.tune.SweepStatus`."""
        now = time.monotonic()
        if status.note and status.note != self._note:
            self._note = status.note
            self.close()
            print(status.note + " ...", file=self._out, flush=True)
        elif self._is_live and now - self._shown_s > LIVE_S:
            self._shown_s = now
            self._redraw([_sweep_line(status), *map(_running_line, _running(status))])
        elif not self._is_live:
            self._tell_ended(status)

    def close(self) -> None:
        """Leave what is shown where it is."""
        self._height = 0

    def _redraw(self, lines: list[str]) -> None:
        up = f"\x1b[{self._height}A" if self._height else ""
        width = max(20, _columns() - 1)
        self._out.write(up + "".join(f"\x1b[2K{line[:width]}\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._height = len(lines)

    def _tell_ended(self, status: Any) -> None:
        for row in status.rows:
            if row.status not in ("running", "paused", "pending") and row.name not in self._told:
                self._told.add(row.name)
                value = f"{status.metric} {row.metric:.4g}" if row.metric is not None else row.reason or ""
                print(
                    f"{row.name} {row.status:<10} {value}  {_params(row.params)}  ({_sweep_line(status)})",
                    file=self._out,
                    flush=True,
                )


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


def _running(status: Any) -> list[Any]:
    return [row for row in status.rows if row.status == "running"][:8]


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
    return f"  {row.name}  step {row.steps}  {value}  {_params(row.params)}"


def _params(params: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={_value(value)}" for key, value in params.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def achieved(result: Mapping[str, Any]) -> str:
    """Say what a training achieved of what its devices could, and how much memory it took, by its `result.json`."""
    parts = []
    if result["tokens_per_second"]:
        parts.append(f"{result['tokens_per_second']:,.0f} tokens/s")
    if result["flops_per_second"]:
        share = f" ({result['mfu']:.1%} of the devices' peak)" if result["mfu"] else ""
        parts.append(f"{result['flops_per_second'] / 1e9:,.3g} GFLOP/s{share}")
    parts.append(f"peak memory of a worker {result['peak_memory_bytes'] / 2**20:,.0f} MiB")
    if result["micro_batch_size"]:
        parts.append(f"{result['micro_batch_size']} samples at a time")
    return "; ".join(parts)


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


def file_and_settings(parser: ArgumentParser, texts: Sequence[str]) -> tuple[str | None, list[str]]:
    """Part a job's arguments into its config file, if there is one, and its settings."""
    files = [text for text in texts if "=" not in text]
    if len(files) > 1:
        parser.error(f"one config file at most, not {' and '.join(files)}")
    return (files[0] if files else None), [text for text in texts if "=" in text]


def _columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 80


def _warn_on_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Warning())
    log = logging.getLogger("shoal")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if os.environ.get("SHOAL_TRACEBACK") == "1" else logging.INFO)
    log.propagate = False


class _Warning(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        word = {"WARNING": "warning: ", "ERROR": "error: "}.get(record.levelname, "")
        return f"{word}{record.getMessage()}"
