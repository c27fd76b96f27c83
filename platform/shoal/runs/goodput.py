"""Goodput: what each second of a run went to, from its first submission to its end, over all attempts.

Pure functions of a run's marks (`shoal.runs.timeline`). Each second belongs to the mark before it, so that the classes
sum to the wall clock whatever was killed. A step counts as repeated where a later attempt went on from before it: its
seconds were spent, and its result was lost.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from shoal.runs.timeline import Mark, read_timeline
from shoal.storage.lease import now_ms
from shoal.storage.records import AttemptBegun, Goodput, Identity, Resize
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.interval import mean_time_between_failures_s

KEPT, REPEATED = "kept_steps", "repeated_steps"
# In the order in which they are shown.
CLASSES = (
    KEPT,
    REPEATED,
    "start",
    "restore",
    "checkpoint",
    "evaluation",
    "tracking",
    "waiting",
    "hang",
    "down",
    "delivery",
)

Span = tuple[float, float, str]  # from, to, class


def why_submitted(folder: RunFolder) -> str:
    """Return why a run is submitted now: how the submission before ended, or that there was none."""
    identity = folder.load(Identity)
    if identity is None:
        return "submitted"
    return identity.reason or ("the driver died" if identity.status == "RUNNING" else identity.status)


def measure_goodput(folder: RunFolder, end_ms: int) -> Goodput | None:
    """Return what the seconds of a run went to until now; None for one of an earlier version, which left no marks."""
    marks = read_timeline(folder)
    if not marks:
        return None
    seconds = seconds_by_class(marks, end_ms)
    wall_s = sum(seconds.values())
    return Goodput(
        share=seconds[KEPT] / wall_s if wall_s else 0.0,
        wall_s=wall_s,
        seconds=seconds,
        attempts=attempts(marks),
    )


def observed_mtbf_s(folder: RunFolder) -> float:
    """Return the mean seconds between failures of a run so far; a stop that was asked for is none."""
    marks = read_timeline(folder)
    if not marks:
        return mean_time_between_failures_s(0.0, 0)
    seconds = seconds_by_class(marks, now_ms())
    failures = sum(not one.why.startswith("interrupted") for one in attempts(marks)[1:])
    return mean_time_between_failures_s(sum(seconds.values()) - seconds["down"], failures)


def seconds_by_class(marks: Sequence[Mark], end_ms: int) -> dict[str, float]:
    """Return the seconds from the first mark to the end, by class."""
    found = dict.fromkeys(CLASSES, 0.0)
    for since, until, name in spans(marks, end_ms):
        found[name] += until - since
    return found


def spans(marks: Sequence[Mark], end_ms: int) -> list[Span]:
    """Return the time from the first mark to the end in parts of one class each, in Unix seconds."""
    found: list[Span] = []
    end = Mark(max(end_ms, marks[-1].at_ms), "down")
    for mark, after, kept_until in zip(marks, [*marks[1:], end], _kept_until(marks), strict=True):
        at = mark.at_ms / 1000
        for name, seconds in _shares(mark, after, kept_until).items():
            if seconds > 0:
                found.append((at, at + seconds, name))
                at += seconds
    return found


def attempts(marks: Sequence[Mark]) -> list[AttemptBegun]:
    """Return when and why each attempt began, and the step that it went on from."""
    begun: list[AttemptBegun] = []
    for before, mark in pairwise([Mark(0, "down"), *marks]):
        if mark.why:
            begun.append(AttemptBegun(at_ms=mark.at_ms, why=mark.why))
        elif begun and _resumes(before, mark):
            begun[-1] = begun[-1].model_copy(update={"step": mark.step})
    return begun


def resizes(marks: Sequence[Mark]) -> list[Resize]:
    """Return the changes of the number of workers that came to a step, of a run in which it may change."""
    found: list[Resize] = []
    size: int | None = None  # of the workers that made steps last
    begun, why = Mark(0, "down"), ""
    for before, mark in pairwise([begun, *marks]):
        why = mark.why or why
        if mark.size is not None:
            begun = mark
        elif begun.size is not None and mark.step is not None and _resumes(before, mark):
            if size not in (None, begun.size):
                found.append(
                    Resize(at_ms=mark.at_ms, step=mark.step, before=size, workers=begun.size, why=why)
                )
            size = begun.size
    return found


def _resumes(before: Mark, mark: Mark) -> bool:
    return mark.state == "steps" and before.state != "steps"


def _kept_until(marks: Sequence[Mark]) -> list[float]:
    """Return for each mark the earliest step that a later attempt went on from."""
    found, earliest = [], math.inf
    for before, mark in reversed(list(pairwise([Mark(0, "down"), *marks]))):
        found.append(earliest)
        if _resumes(before, mark) and mark.step is not None:
            earliest = min(earliest, mark.step)
    return found[::-1]


def _shares(mark: Mark, after: Mark, kept_until: float) -> dict[str, float]:
    """Return the seconds between two marks by class."""
    seconds = (after.at_ms - mark.at_ms) / 1000
    if after.lost is not None:
        return {after.lost: seconds}
    if mark.state != "steps":
        return {mark.state: seconds}
    besides = sum(after.spent.values())
    factor = min(1.0, seconds / besides) if besides else 0.0  # of clocks that do not agree
    shares: dict[str, float] = {name: factor * spent for name, spent in after.spent.items()}
    steps_s = seconds - sum(shares.values())
    kept = _kept_share(mark.step or 0, after.step, kept_until)
    return {KEPT: kept * steps_s, REPEATED: (1 - kept) * steps_s, **shares}


def _kept_share(done: int, then: int | None, kept_until: float) -> float:
    """Return which share of the steps from one to another was not lost, or whether the next one was not."""
    steps = (then or 0) - done
    if steps <= 0:
        return float(done < kept_until)
    return min(1.0, max(0.0, (kept_until - done) / steps))
