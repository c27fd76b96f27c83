"""Measures the journal: what adding and writing a step's point takes, and reading a million of them.

A point is of one metric. Adding includes the write to the file, as the loop does after each step; not the sync to
the disk, which is with each checkpoint. Memory is that of this process: what reading the last nine tenths of the points
adds to that of reading the first, which is nothing where it does not grow with them.
"""

import time
from pathlib import Path

import psutil

from harness import Figure, Report, Row, main, progress, scratch
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import Journal, JournalReader

POINTS = 1_000_000
MB = 1e6


def append(folder: RunFolder, attempt: int) -> float:
    """Return the microseconds that a point takes; a million are written."""
    journal = Journal(folder, attempt)
    since = time.perf_counter()
    for step in range(POINTS):
        journal.log(step, {"train/loss": 1.0 / (step + 1)})
        journal.flush()
    return (time.perf_counter() - since) / POINTS * 1e6


def replay(folder: RunFolder) -> tuple[float, float]:
    """Return the seconds that reading all points takes, and the megabytes that it adds after the first tenth."""
    process, read = psutil.Process(), 0
    since, early = time.perf_counter(), 0
    for _ in JournalReader(folder):
        read += 1
        if read == POINTS // 10:
            early = process.memory_info().rss
    seconds = time.perf_counter() - since
    assert read == POINTS
    return seconds, (process.memory_info().rss - early) / MB


def measure(repeat: int) -> Report:
    micros, seconds, grown = [], [], []
    for number in range(repeat):
        with scratch() as path:
            folder = RunFolder(str(Path(path) / "run"))
            micros.append(append(folder, 1))
            took, added = replay(folder)
            seconds.append(took)
            grown.append(added)
        progress(f"round {number + 1} of {repeat}")
    rows = [
        Row("adding a point", micros, "us"),
        Row("reading a million points", seconds, "s"),
        Row("memory of it, beyond the first tenth", grown, "MB"),
    ]
    figures = [
        Figure("adding a point", rows[0].median, 20.0, is_at_least=False, unit="us"),
        Figure("reading a million points", rows[1].median, 120.0, is_at_least=False, unit="s"),
        Figure("memory that grows with them", rows[2].median, 10.0, is_at_least=False, unit="MB"),
    ]
    return Report("The journal", rows, figures)


if __name__ == "__main__":
    main(measure, repeat=3)
