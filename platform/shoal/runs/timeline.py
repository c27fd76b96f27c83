"""What a run did when: marks in its folder, appended by the processes that know, the driver and worker 0.

A mark says what begins with it. What a killed process did not say any more, the next mark says of it (`lost`). Each
writer has a file of its own, so nothing is torn but a last line. It knows the run folder; what follows from the marks
is in `shoal.runs.goodput`.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from shoal.errors import LeaseLostError
from shoal.storage.lease import now_ms
from shoal.storage.run_folder import TIMELINE, RunFolder
from shoal.training.clock import Clock

State = Literal[
    "start", "waiting", "restore", "steps", "checkpoint", "evaluation", "delivery", "down", "hang", "tracking"
]

SUFFIX = ".jsonl"
# Worker 0 says how far it is after these seconds, by whether the run folder is on a disk (in an object store it is a
# request), and after this share of the time so far: what a kill loses is no more than the larger of the two.
EVERY_S, EVERY_SHARE = {True: 1.0, False: 60.0}, 0.001
# Sections of the clock that are no steps.
BESIDES: dict[str, State] = {"evaluate": "evaluation", "checkpoint": "checkpoint", "journal": "tracking"}


@dataclass(frozen=True)
class Mark:
    """What begins at a moment.

    Attributes:
        at_ms: Unix milliseconds of the host that says it.
        step: that was complete.
        spent: seconds since the mark before that went to something else than its state.
        lost: what the time since the mark before was; None: what that mark says.
        why: an attempt begins, for this reason.
        workers: the driver starts its workers, for the n-th time, from 0.
        size: how many of them, where that number may change.
    """

    at_ms: int
    state: State
    step: int | None = None
    spent: Mapping[State, float] = field(default_factory=dict)
    lost: State | None = None
    why: str = ""
    workers: int | None = None
    size: int | None = None

    def to_line(self) -> bytes:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(
            {name: value for name, value in values.items() if value not in (None, "", {})}
        ).encode()


class Timeline:
    """The driver's marks of one attempt; a folder that cannot be written ends nothing."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self._out = _Marks(folder, driver_file(attempt))
        self._state: State = "start"
        self.attempt = attempt

    def mark(self, state: State, **more: Any) -> int:
        """Say what begins now; return when, in Unix milliseconds."""
        self._state = state
        written = Mark(**{"at_ms": now_ms(), "state": state} | more)
        self._out.write(written)
        self._out.sync_to_store()
        return written.at_ms

    def enter(self, state: State) -> None:
        """Say what begins now, unless it has begun before."""
        if state != self._state:
            self.mark(state)


class WorkerTimeline:
    """Worker 0's marks of one attempt of workers; the other workers' say nothing."""

    def __init__(self, clock: Clock, folder: RunFolder | None = None, name: str = "") -> None:
        """Set up.

        Args:
            folder: None: nothing is said.
        """
        self._clock, self._out = clock, _Marks(folder, name) if folder else None
        self._every_s = EVERY_S[folder is None or folder.is_local]
        self._since_s = self._marked_s = time.monotonic()
        self._before: dict[State, float] = {}

    def enter(self, state: State, step: int | None = None) -> None:
        """Say what begins now, and what the time since the mark before went to."""
        if self._out is None:
            return
        total = {name: self._clock.spent[section] for section, name in BESIDES.items()}
        spent = {name: seconds - self._before.get(name, 0.0) for name, seconds in total.items()}
        self._before, self._marked_s = total, time.monotonic()
        rounded = {name: round(seconds, 4) for name, seconds in spent.items() if seconds > 0}
        self._out.write(Mark(now_ms(), state, step, {} if step is None else rounded))

    def steps(self, step: int) -> None:
        """Say how far training is, now and then."""
        now = time.monotonic()
        if now - self._marked_s >= max(self._every_s, EVERY_SHARE * (now - self._since_s)):
            self.enter("steps", step)

    def sync(self) -> None:
        """Let all marks survive the death of the host."""
        if self._out is not None:
            self._out.sync()


class _Marks:
    def __init__(self, folder: RunFolder, name: str) -> None:
        self._is_local = folder.is_local
        self._out: Any = None
        with contextlib.suppress(OSError, LeaseLostError):  # which the next write of the record says
            self._out = folder.appender(f"{TIMELINE}/{name}")

    def write(self, mark: Mark) -> None:
        with contextlib.suppress(OSError, LeaseLostError):
            if self._out is not None:
                self._out.write(mark.to_line() + b"\n")

    def sync(self) -> None:
        with contextlib.suppress(OSError, LeaseLostError):
            if self._out is not None:
                self._out.sync()

    def sync_to_store(self) -> None:
        """Write what gathers for an object store; a disk has it already."""
        if not self._is_local:
            self.sync()


def driver_file(attempt: int) -> str:
    return f"{attempt:04d}{SUFFIX}"


def worker_file(attempt: int, number: int) -> str:
    """Return the name of the marks of an attempt's workers, which were started for the `number`th time, from 0."""
    return f"{attempt:04d}-{number:04d}{SUFFIX}"


def read_timeline(folder: RunFolder) -> list[Mark]:
    """Return all marks of a run, in the order of time."""
    files = {name: _parse(data) for name, data in _files(folder)}
    marks: list[Mark] = []
    for name in sorted(name for name in files if "-" not in name):
        attempt = int(name.removesuffix(SUFFIX))
        own = [one for one in files if one.startswith(f"{attempt:04d}-")]
        workers = {int(one.removesuffix(SUFFIX).partition("-")[2]): files[one] for one in own}
        marks += in_order(files[name], workers)
    return rising(marks)


def in_order(driver: Sequence[Mark], workers: Mapping[int, Sequence[Mark]]) -> list[Mark]:
    """Return the driver's marks, and those of each start of workers before the one that ended them.

    Not by their times alone: the clock of another host may be off.

    Args:
        workers: the marks of each start of workers, by its number.
    """
    marks: list[Mark] = []
    running: Sequence[Mark] = ()
    for mark in driver:
        is_before_work = mark.workers is None and mark.lost is None and mark.state in ("start", "waiting")
        if not (running and is_before_work):
            marks += [replace(one, at_ms=min(one.at_ms, mark.at_ms)) for one in running]
            running = () if mark.workers is None else workers.get(mark.workers, ())
        marks.append(mark)
    return [*marks, *running]


def rising(marks: Sequence[Mark]) -> list[Mark]:
    """Return marks none of which is before the one that it follows."""
    found: list[Mark] = []
    for mark in marks:
        earliest = found[-1].at_ms if found else mark.at_ms
        found.append(replace(mark, at_ms=max(mark.at_ms, earliest)))
    return found


def _files(folder: RunFolder) -> Iterator[tuple[str, bytes]]:
    if folder.is_local:
        for name in folder.names(TIMELINE):
            yield name, folder.read(f"{TIMELINE}/{name}")
        return
    for file, count in folder.parts.counts(TIMELINE, is_fresh=True, most_tries=None).items():
        yield file, b"".join(folder.parts.read_listed(f"{TIMELINE}/{file}", 0, count, most_tries=None))


def _parse(data: bytes) -> list[Mark]:
    known = {one.name for one in fields(Mark)}
    marks = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # torn by a crash
            marks.append(Mark(**{key: value for key, value in json.loads(line).items() if key in known}))
    return marks
