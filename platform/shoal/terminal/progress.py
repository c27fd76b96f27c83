"""The progress of a training or a sweep: a live display on a terminal, a few plain lines elsewhere.

This module decides what is shown and when; `live` draws it. It depends only on the status objects of the workflows.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from shoal.terminal.tables import duration, table
from shoal.tracking.journal import MetricPoint
from shoal.tracking.status import TrainStatus
from shoal.tune.report.text import params_text, value_text

if TYPE_CHECKING:  # a job imports only its own workflow
    from shoal.workflows.tune.state import SweepStatus

LIVE_S = 0.2
PLAIN_S = 10.0
RATE_S = 10.0
PAUSE_STEPS = 5  # so many steps' time without a step is no slow step
SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/rmse", "val/wer", "val/map")
IN_HISTORY = (*SHOWN, "val/bits_per_byte")
BEST_STEP = "best/step"  # logged by the loop at the evaluations that are the best so far
MOST_RUNNING = 8
MOST_HISTORY = 40  # evaluations of which a log gets a line each; of later ones a line now and then


class Screen(Protocol):
    """Where progress is shown."""

    is_live: bool

    @property
    def columns(self) -> int: ...

    def print(self, line: str) -> None:
        """Print a line that stays."""

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the live lines at the bottom."""

    def freeze(self) -> None:
        """Leave the live lines where they are."""


class PlainLines:
    """Lines of any length without control characters; a closed or broken stream ends them, never the training."""

    is_live = False
    columns = sys.maxsize

    def __init__(self, out: TextIO) -> None:
        self._out: TextIO | None = out

    def print(self, line: str) -> None:
        if self._out is None:
            return
        try:
            print(line, file=self._out, flush=True)
        except (OSError, ValueError):
            self._out = None

    def draw(self, lines: Sequence[str]) -> None:
        pass

    def freeze(self) -> None:
        pass


def open_screen(out: TextIO) -> Screen:
    """Return a live screen for a terminal that can move its cursor, else plain lines."""
    if out.closed or not out.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return PlainLines(out)
    from shoal.terminal.live import LiveRegion

    return LiveRegion(out)


class _View:
    """What a training and a sweep share on a screen: a context that leaves the last state behind, and notes."""

    def __init__(self, out: TextIO | None) -> None:
        self._screen = open_screen(out or sys.stdout)
        self._shown_s, self._note = 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._freeze()

    def _announce(self, note: str) -> None:
        """Print a note once, below what was shown before it."""
        if note != self._note:
            self._note = note
            self._freeze()
            self._screen.print(f"{note} ...")

    def _freeze(self) -> None:
        """Leave the latest state on the screen; what follows is printed below it."""
        raise NotImplementedError


class ProgressLine(_View):
    """A training: a line for each evaluation, and on a terminal one live line below them.

    Elsewhere it is a line for each of the first evaluations, and one now and then.

    It listens to `shoal.workflows.train.train`, and keeps no more than the last seconds' steps.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        super().__init__(out)
        self._shown_step, self._logged = -1, 0
        self._speed, self._history = Speed(), EvaluationHistory()
        self._latest: TrainStatus | None = None

    def __call__(self, status: TrainStatus) -> None:
        if status.note:
            self._announce(status.note)
            return
        now = time.monotonic()
        if self._begins_again(status):
            self._speed, self._shown_step = Speed(), -1
        self._latest = status
        if status.is_training:
            self._speed.add(now, status.step)
        for evaluation in self._history.add(status.new_points):
            if status.is_training and (self._screen.is_live or self._logged < MOST_HISTORY):
                self._logged += 1
                self._screen.print(evaluation_text(evaluation, status, self._screen.columns))
        if not status.is_training and self._shown_step < 0:
            self._shown_s, self._shown_step = now, status.step
            self._screen.print(
                progress_text(status, 0.0, self._screen.columns)
            )  # stays: where it starts or resumes
        elif self._is_due(status, now):
            self._show(status, now)

    def _begins_again(self, status: TrainStatus) -> bool:
        """Whether steps are no longer those of before: another training, or one that went back to a checkpoint."""
        latest = self._latest
        return latest is not None and (status.step < latest.step or status.steps != latest.steps)

    def _is_due(self, status: TrainStatus, now: float) -> bool:
        if status.step == self._shown_step:
            return False
        pause = LIVE_S if self._screen.is_live else PLAIN_S
        return now - self._shown_s >= pause or status.step == status.steps

    def _show(self, status: TrainStatus, now: float) -> None:
        self._shown_s, self._shown_step = now, status.step
        text = progress_text(status, self._speed.steps_per_s(), self._screen.columns)
        if self._screen.is_live:
            self._screen.draw([text])
        else:
            self._screen.print(text)

    def _freeze(self) -> None:
        """Leave the live line showing the last step that was reported."""
        latest, self._latest = self._latest, None
        if self._screen.is_live and latest and latest.is_training:
            self._show(latest, time.monotonic())
        self._screen.freeze()


class SweepTable(_View):
    """A sweep: on a terminal a live table of the best and the running trials, elsewhere a line for each that ends.

    It listens to `shoal.workflows.tune.sweep.run_sweep`.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        super().__init__(out)
        self._latest: SweepStatus | None = None

    def __call__(self, status: "SweepStatus") -> None:
        if not self._screen.is_live:
            self._print_ended(status)
        if status.note:
            self._announce(status.note)
            return
        self._latest = status
        if not self._screen.is_live:
            return
        if time.monotonic() - self._shown_s > LIVE_S:
            self._shown_s = time.monotonic()
            self._screen.draw(self._lines(status))

    def _lines(self, status: "SweepStatus") -> list[str]:
        return [sweep_text(status), *running_table(status)]

    def _print_ended(self, status: "SweepStatus") -> None:
        for row in status.newly_ended:
            value = f"{status.metric} {row.metric:.4g}" if row.metric is not None else row.reason or ""
            self._screen.print(
                f"{row.name} {row.status:<10} {value}  {params_text(row.params)}  ({sweep_text(status)})"
            )

    def _freeze(self) -> None:
        latest, self._latest = self._latest, None
        if self._screen.is_live and latest:
            self._screen.draw(self._lines(latest))
        self._screen.freeze()


class Speed:
    """Steps per second over the last seconds, of the steps that this attempt has made."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, step: int) -> None:
        if self._is_after_a_pause(now):
            self._seen.clear()
        if not self._seen or step != self._seen[-1][1]:
            self._seen.append((now, step))
        # Two are kept however old they are: steps may take longer than the window.
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_S:
            self._seen.popleft()

    def _is_after_a_pause(self, now: float) -> bool:
        """Whether no step was made for far longer than one takes, e.g. while workers were started again."""
        if len(self._seen) < 2:
            return False
        (since, _), (until, _) = self._seen[0], self._seen[-1]
        return now - until > max(RATE_S, PAUSE_STEPS * (until - since) / (len(self._seen) - 1))

    def steps_per_s(self) -> float:
        """Return the speed, or 0 before two steps 0.2 s apart were seen."""
        if not self._seen:
            return 0.0
        (since, first), (until, last) = self._seen[0], self._seen[-1]
        return (last - first) / (until - since) if until - since > 0.2 else 0.0


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation split, with the training loss before it."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


class EvaluationHistory:
    """Picks the evaluations out of the metric points of a run, which come in order."""

    def __init__(self) -> None:
        self._train_loss: dict[str, float] = {}

    def add(self, points: Sequence[MetricPoint]) -> list[Evaluation]:
        """Return the evaluations among new points; those of one evaluation come together."""
        found: dict[int, dict[str, float]] = {}
        for point in points:
            if point.key == "train/loss":
                self._train_loss = {point.key: point.value}
            elif point.key.startswith("val/") or point.key == BEST_STEP:
                found.setdefault(point.step, dict(self._train_loss))[point.key] = point.value
        return [Evaluation(step, metrics, BEST_STEP in metrics) for step, metrics in found.items()]


def progress_text(status: TrainStatus, steps_per_s: float, columns: int) -> str:
    """Return step, metrics, speed and ETA of a training in a line; metrics are left out where columns are few."""
    if not status.step:
        return f"starting; {status.steps} steps to go"
    if not status.is_training:
        return f"resuming at step {status.step} of {status.steps}"
    metrics = [f"{name} {status.metrics[name]:.4g}" for name in SHOWN if name in status.metrics]
    speed = []
    if steps_per_s:
        speed.append(f"{steps_per_s:.{0 if steps_per_s >= 10 else 1}f} steps/s")
        if status.step < status.steps:
            speed.append(f"ETA {duration((status.steps - status.step) / steps_per_s)}")
    step = f"step {status.step}/{status.steps}"
    return _widest([[step, *metrics[:count], *speed] for count in range(len(metrics), -1, -1)], columns)


def evaluation_text(evaluation: Evaluation, status: TrainStatus, columns: int) -> str:
    """Write an evaluation as a line of the history, aligned with those before and after it."""
    epoch = evaluation.step / status.steps_per_epoch
    digits = len(str(-(-status.steps // status.steps_per_epoch)))
    number = f"{epoch:>{digits}.0f}" if epoch.is_integer() else f"{epoch:>{digits + 2}.1f}"
    step = f"step {evaluation.step:>{len(str(status.steps))}}/{status.steps}"
    metrics = [
        f"{name} {evaluation.metrics[name]:<9.4g}" for name in IN_HISTORY if name in evaluation.metrics
    ]
    best = ["best"] if evaluation.is_best else []
    # `val/*` go last: the step is in the epoch, and the training loss in the live line.
    shorter = ([step, *metrics], metrics, metrics[1:], metrics[1:2])
    return _widest([[f"epoch {number}", *parts, *best] for parts in shorter], columns)


def _widest(choices: Sequence[Sequence[str]], columns: int) -> str:
    """Return the first line that fits, or the last."""
    lines: Iterator[str] = ("  ".join(parts).rstrip() for parts in choices)
    line = ""
    for line in lines:
        if len(line) < columns:
            break
    return line


def sweep_text(status: "SweepStatus") -> str:
    """Return trial counts, the best metric and the ETA of a sweep in a line."""
    done = status.ended
    parts = [f"{done}/{status.total} trials", f"{len(status.running)} running"]
    if status.best is not None:
        parts.append(f"best {status.best.name} {status.metric} {status.best.metric:.4g}")
    if status.replayed < done < status.total:  # the seconds of this attempt are those of its own trials
        parts.append(f"ETA {duration(status.seconds / (done - status.replayed) * (status.total - done))}")
    return "  ".join(parts)


def running_table(status: "SweepStatus") -> list[str]:
    """Lay out the best trial and those that run, as lines; none when none runs."""
    running = status.running[:MOST_RUNNING]
    if not running:
        return []
    rows = ([status.best] if status.best else []) + running
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    lines: list[tuple[str, ...]] = [("trial", "status", status.metric, "steps", *keys)]
    for row in rows:
        value = f"{row.metric:.4g}" if row.metric is not None else "..."
        params = (value_text(row.params[key]) if key in row.params else "" for key in keys)
        lines.append((row.name, "best" if row is status.best else row.status, value, str(row.steps), *params))
    return table(lines).splitlines()
