"""The journal: metric points as lines of JSON in the run folder, written before MLflow receives them.

Each attempt writes its own file. A reader returns a point once: after a crash the steps since the last checkpoint are
trained and written again, and a reader drops points of steps that it has seen for their metric. The first value and
time stay.
"""

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.storage.records import JournalPosition
from shoal.storage.run_folder import JOURNAL, RunFolder


def _line(step: int, at_ms: int, metrics: Mapping[str, float]) -> str:
    """Return a line of JSON, in which numbers that are not finite are null."""
    try:
        return json.dumps({"step": step, "ms": at_ms, "metrics": metrics}, allow_nan=False)
    except ValueError:
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        return json.dumps({"step": step, "ms": at_ms, "metrics": finite})


def journal_name(attempt: int) -> str:
    """Return the name of an attempt's journal inside the run folder."""
    return f"{JOURNAL}/{attempt:04d}.jsonl"


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric."""

    key: str
    value: float
    step: int
    time_ms: int


class Journal:
    """Writes points of one attempt; safe to call from several threads."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        # A killed writer may have left half a line: begin a new one.
        self._lines = ["\n"] if folder.exists(journal_name(attempt)) else []
        self._out = folder.appender(journal_name(attempt))
        self._lock = threading.Lock()

    def log(self, step: int, metrics: Mapping[str, float], at_s: float | None = None) -> None:
        """Add metrics of a step to the buffer; `flush` writes it.

        Args:
            at_s: Unix seconds; now by default.
        """
        at_ms = int((time.time() if at_s is None else at_s) * 1000)
        line = _line(step, at_ms, metrics)
        with self._lock:
            self._lines.append(line + "\n")

    def flush(self) -> None:
        """Write all points to the file: they survive the death of the process."""
        with self._lock:
            if self._lines:
                self._out.write("".join(self._lines).encode())
                self._lines.clear()

    def sync(self) -> None:
        """Force all points to the disk: they survive the death of the host."""
        self.flush()
        with self._lock:
            self._out.sync()


class NoJournal:
    """The journal of workers other than rank 0: it writes nothing."""

    def log(self, step: int, metrics: Mapping[str, float], at_s: float | None = None) -> None:
        pass

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        pass


class JournalReader:
    """Reads a run's points in order, with rising steps for each metric, from where the last call stopped."""

    def __init__(self, folder: RunFolder, position: JournalPosition | None = None) -> None:
        self._folder = folder
        position = position or JournalPosition()
        self._offsets, self._steps = dict(position.offsets), dict(position.steps)

    @property
    def position(self) -> JournalPosition:
        """Where the next call continues."""
        return JournalPosition(offsets=dict(self._offsets), steps=dict(self._steps))

    def read(self) -> list[MetricPoint]:
        """Return the points written since the last call."""
        points: list[MetricPoint] = []
        for name in self._folder.names(JOURNAL):
            if ".jsonl" in name and not name.startswith("."):
                points += self._read_file(name)
        return points

    def _read_file(self, name: str) -> list[MetricPoint]:
        offset = self._offsets.get(name, 0)
        if self._folder.size(f"{JOURNAL}/{name}") <= offset:
            return []
        data = self._folder.read_from(f"{JOURNAL}/{name}", offset)
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[name] = offset + len(whole)
        points: list[MetricPoint] = []
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn by a crash
            for key, value in entry["metrics"].items():
                if entry["step"] > self._steps.get(key, -1):
                    self._steps[key] = entry["step"]
                    number = math.nan if value is None else value
                    points.append(MetricPoint(key, number, entry["step"], entry["ms"]))
        return points
