"""A file that grows, in an object store: numbered parts, each written once, since nothing can be appended there.

A part never changes, so it is asked for once; what is not there yet is asked for every `POLL_S` at most, however often
the readers of a process look. So the requests per minute do not depend on how long a file has grown.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from shoal.errors import LeaseLostError

PART_S = 20.0  # how long bytes gather before they become a part
POLL_S = 20.0  # between two requests for a part that is not there yet
MOST_BYTES = 64 * 2**20  # that wait while the store is away; beyond it the writer waits
MOST_RECENT = 16  # parts that are kept for other readers in this process
AT_ONCE, CHUNK = 8, 32  # requests, and parts in memory, where a long journal is read


class WholeFiles(Protocol):
    """What parts are kept in: a folder of whole files."""

    def poll(self, name: str, most_tries: int | None = 1) -> bytes | None: ...

    def write(self, name: str, data: bytes) -> None: ...

    def names(self, name: str = "", most_tries: int | None = None) -> list[str]: ...


def part_name(file: str, number: int) -> str:
    """Return the name of a file's part."""
    return f"{file}.{number:06d}"


def count_parts(names: Sequence[str]) -> dict[str, int]:
    """Return how many parts each file has, by the files' names, from all names in a folder."""
    counts: dict[str, int] = {}
    for name in names:
        file, _, number = name.rpartition(".")
        if number.isdecimal():
            counts[file] = max(counts.get(file, 0), int(number) + 1)
    return counts


class PartAppender:
    """Gathers bytes for a while and writes them as the next part, in the background; `sync` writes them now.

    While the store is away they wait. What went wrong with a part shows at the next call.
    """

    def __init__(self, folder: WholeFiles, name: str) -> None:
        self._folder, self._name = folder, name
        parent, _, file = name.rpartition("/")
        # A restarted worker opens its journal again: its parts follow the existing ones.
        self._number = count_parts(folder.names(parent)).get(file, 0)
        self._gathered, self._since = bytearray(), time.monotonic()
        self._lock, self._one_at_a_time = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: OSError | LeaseLostError | None = None

    def write(self, data: bytes) -> None:
        with self._lock:
            self._gathered += data
            is_due = time.monotonic() - self._since > PART_S
        if len(self._gathered) > MOST_BYTES:
            self.sync()
        self._raise_error()
        if is_due and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name="shoal-journal", daemon=True)
            self._thread.start()

    def sync(self) -> None:
        self._write_part()
        self._raise_error()

    def _work(self) -> None:
        try:
            self._write_part()
        except (OSError, LeaseLostError) as error:
            self._error = error

    def _write_part(self) -> None:
        with self._one_at_a_time:
            with self._lock:
                data, self._gathered, self._since = bytes(self._gathered), bytearray(), time.monotonic()
            if not data:
                return
            try:
                self._folder.write(part_name(self._name, self._number), data)
            except BaseException:
                with self._lock:
                    self._gathered = bytearray(data) + self._gathered
                raise
            self._number += 1

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error


class PartReader:
    """Reads parts for all readers of a process: a part once, and what is not there not again before `POLL_S`.

    The methods ask a store that does not answer `most_tries` times: once, for a reader that comes again; None: until an
    outage has lasted too long, for one that needs them all now.
    """

    def __init__(self, folder: WholeFiles) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._recent: dict[str, bytes] = {}
        # The part that was not there, when, and whether it was asked for or taken to be absent.
        self._absent: tuple[str, float, bool] | None = None
        self._listed: dict[str, tuple[float, dict[str, int]]] = {}

    def counts(self, folder: str, is_fresh: bool = False, most_tries: int | None = 1) -> dict[str, int]:
        """Return how many parts each file in a folder had `POLL_S` ago at most, or has now."""
        with self._lock:
            listed_s, counts = self._listed.get(folder, (float("-inf"), {}))
            if is_fresh or time.monotonic() - listed_s > POLL_S:
                counts = count_parts(self._folder.names(folder, most_tries))
                self._listed[folder] = time.monotonic(), counts
                self._absent = None
            return counts

    def read_listed(self, file: str, first: int, end: int, most_tries: int | None = 1) -> Iterator[bytes]:
        """Yield parts that were listed, several requests at a time where they are many; a lost one is empty."""
        if end - first <= MOST_RECENT:
            yield from ((self.read(file, number, most_tries) or b"") for number in range(first, end))
            return
        poll = partial(self._folder.poll, most_tries=most_tries)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(first, end, CHUNK):
                names = [part_name(file, number) for number in range(start, min(start + CHUNK, end))]
                yield from (data or b"" for data in pool.map(poll, names))

    def read(self, file: str, number: int, most_tries: int | None = 1) -> bytes | None:
        """Return a part, or None where it was not there `POLL_S` ago at most."""
        name = part_name(file, number)
        with self._lock:
            if name in self._recent:
                return self._recent[name]
            absent, absent_s, was_asked = self._absent or ("", 0.0, False)
            if name == absent and time.monotonic() - absent_s < POLL_S:
                return None
            data = self._folder.poll(name, most_tries)
            if data is None:
                self._absent = name, time.monotonic(), True
                return None
            if name == absent and was_asked:  # it has just come, so the next one will be a while
                self._absent = part_name(file, number + 1), time.monotonic(), False
            self._recent[name] = data
            while len(self._recent) > MOST_RECENT:
                del self._recent[next(iter(self._recent))]
            return data
