"""The journal: metric points as lines of JSON in the run folder, written before MLflow receives them.

Each attempt writes its own file. A reader returns a point once: after a crash the steps since the last checkpoint are
trained and written again, and a reader drops points of steps that it has seen for their metric. The first value and
time stay.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal.storage.parts import count_parts
from shoal.storage.records import JournalPosition
from shoal.storage.run_folder import JOURNAL, RunFolder

SUFFIX = ".jsonl"
MOST_BYTES = 2**20  # read at a time
_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps makes an encoder for each call


def _line(step: int, at_ms: int, metrics: Mapping[str, float]) -> str:
    """Return a line of JSON, in which numbers that are not finite are null."""
    try:
        return _encode({"step": step, "ms": at_ms, "metrics": metrics})
    except ValueError:
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        return _encode({"step": step, "ms": at_ms, "metrics": finite})


def journal_name(attempt: int) -> str:
    """Return the name of an attempt's journal inside the run folder."""
    return f"{JOURNAL}/{attempt:04d}{SUFFIX}"


def has_journal(folder: RunFolder, attempt: int) -> bool:
    """Whether an attempt has begun to write its journal."""
    return any(name.startswith(f"{attempt:04d}{SUFFIX}") for name in folder.names(JOURNAL))


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
        self._out.sync()  # outside the lock: while it waits for a slow disk or store, points still come in


class NoJournal:
    """The journal of workers other than rank 0: it writes nothing."""

    def log(self, step: int, metrics: Mapping[str, float], at_s: float | None = None) -> None:
        pass

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        pass


class JournalReader:
    """Reads a run's points in order, with rising steps for each metric, from where the last call stopped.

    In an object store a reader lists the parts until it sees a file grow, and then asks for that file's next part
    alone; `look_again` has it list them once more.
    """

    def __init__(
        self, folder: RunFolder, position: JournalPosition | None = None, most_tries: int | None = 1
    ) -> None:
        """Set up.

        Args:
            position: where an earlier reader stopped.
            most_tries: how often an object store is asked that does not answer: once, for one who reads again later;
                None: until an outage has lasted too long.
        """
        self._folder, self._most_tries = folder, most_tries
        position = position or JournalPosition()
        self._steps, self._offsets, self._parts = dict(position.steps), dict(position.offsets), {}
        if not folder.is_local:
            self._offsets, self._parts = {}, count_parts(list(position.offsets)) | position.parts
        self._listed: dict[str, int] | None = None  # what there was at first
        self._growing: str | None = None
        self._looks_again = True

    @property
    def position(self) -> JournalPosition:
        """Where the next call continues."""
        return JournalPosition(offsets=dict(self._offsets), parts=dict(self._parts), steps=dict(self._steps))

    def read(self) -> list[MetricPoint]:
        """Return the points written since the last call."""
        return list(self)

    def __iter__(self) -> Iterator[MetricPoint]:
        """Yield the points written since the last call; of millions, few are held at a time."""
        while found := self.read_some():
            yield from found

    def read_some(self) -> list[MetricPoint]:
        """Return the next of them: not many more than `MOST_BYTES` hold, and none only if there are none left."""
        points: list[MetricPoint] = []
        nbytes = 0
        for data in self._files() if self._folder.is_local else self._new_parts():
            points += self._parse(data)
            nbytes += len(data)
            if points and nbytes >= MOST_BYTES:
                break
        return points

    def skip(self) -> None:
        """Pass over what is there, in an object store, where reading hours of it takes minutes."""
        if not self._folder.is_local:
            self._parts |= self._folder.parts.counts(JOURNAL, is_fresh=True)

    def look_again(self) -> None:
        """Have the next call list all parts there are."""
        self._growing, self._looks_again = None, True

    def _files(self) -> Iterator[bytes]:
        """Yield the new whole lines of the files on a disk."""
        for name in self._folder.names(JOURNAL):
            if SUFFIX not in name or name.startswith("."):
                continue
            while data := self._whole_lines(name):
                self._offsets[name] = self._offsets.get(name, 0) + len(data)
                yield data

    def _whole_lines(self, name: str) -> bytes:
        path, offset = f"{JOURNAL}/{name}", self._offsets.get(name, 0)
        most = MOST_BYTES
        while (left := self._folder.size(path) - offset) > 0:
            data = self._folder.read_from(path, offset, most)
            if (end := data.rfind(b"\n") + 1) or most >= left:
                return data[:end]
            most *= 2  # a line longer than that
        return b""

    def _new_parts(self) -> Iterator[bytes]:
        """Yield the new parts of the files in an object store."""
        reader = self._folder.parts
        if self._growing is None:
            counts = reader.counts(JOURNAL, self._looks_again, self._most_tries)
            self._looks_again = False
            self._listed = counts if self._listed is None else self._listed
            for file, count in sorted(counts.items()):
                first = self._parts.get(file, 0)
                for data in reader.read_listed(f"{JOURNAL}/{file}", first, count, self._most_tries):
                    yield self._take(file, data)
                if count > self._listed.get(file, 0):
                    self._growing = file
        while self._growing:
            number = self._parts.get(self._growing, 0)
            part = reader.read(f"{JOURNAL}/{self._growing}", number, self._most_tries)
            if part is None:
                return
            yield self._take(self._growing, part)

    def _take(self, file: str, data: bytes) -> bytes:
        self._parts[file] = self._parts.get(file, 0) + 1
        return data

    def _parse(self, lines: bytes) -> list[MetricPoint]:
        points: list[MetricPoint] = []
        for line in lines.splitlines():
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


def all_points(folder: RunFolder) -> Iterator[MetricPoint]:
    """Yield the points that a run has; an object store that is away is waited for.

    Raises:
        StorageError: it was away for too long.
    """
    return iter(JournalReader(folder, most_tries=None))
