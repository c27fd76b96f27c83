"""Measures what a checkpoint every 30 s costs a training: throughput with and without, and the run's own account.

An MLP of 4 million parameters with Adam, whose checkpoint has 50 MB. Two runs of `jobs/train.py`, each in a process
of its own with one thread, train side by side, so that the machine is alike for both: one with
`checkpoint.every_s=30`, one without any after its first. Steps are counted over the same two minutes. The account is
what the run's timeline says that the loop was held up for checkpoints; the writing itself, beside the steps, shows in
the throughput alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT, Figure, Report, Row, environment, main, progress, ratios, scratch
from quiet import Quiet, Timing
from shoal.runs.timeline import read_timeline
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader

EVERY_S, WINDOW_S, WARM_UP_S = 30, 122.0, 10.0  # so that four of them are in it
START_S, STOP_S = 120.0, 60.0
NEVER_S = 10**6
SETTINGS = (
    "scale.num_workers=0",
    "data.source=synthetic:classification?rows=20000&features=1000&classes=10",
    "data.global_batch_size=128",
    "model.name=mlp",
    "model.width=2048",
    "model.depth=2",
    "optim.name=adam",
    "train.epochs=1000000",
    "train.evaluate_every_steps=1000000",
    "track.every_steps=1",
)


class Training:
    """A run of its own process, with or without checkpoints."""

    def __init__(self, folder: Path, name: str, every_s: int) -> None:
        own = (
            f"run_name={name}",
            f"storage_path={folder}/runs",
            f"checkpoint.every_s={every_s}",
            f"track.tracking_uri=sqlite:///{folder}/{name}.db",
        )
        self.folder = RunFolder(str(folder / "runs" / "shoal" / name))
        self._log = folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / "train.py"), *SETTINGS, *own],
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def step_ends_s(self) -> list[float]:
        """Return when each step ended."""
        return [
            point.time_ms / 1000 for point in JournalReader(self.folder).read() if point.key == "train/loss"
        ]

    def await_steps(self) -> None:
        """Return when it makes steps.

        Raises:
            SystemExit: it does not.
        """
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            if len(self.step_ends_s()) > 1:
                return
            time.sleep(0.5)
        raise SystemExit(f"no steps:\n{self._log.read_text()[-3000:]}")

    def held_s(self, since_s: float, until_s: float) -> float:
        """Return the seconds within a window that the loop was held up for checkpoints."""
        within = [mark for mark in read_timeline(self.folder) if since_s <= mark.at_ms / 1000 < until_s]
        return sum(mark.spent.get("checkpoint", 0.0) for mark in within)

    def bytes(self) -> int:
        """Return the size of a checkpoint."""
        last = max((Path(self.folder.uri) / "checkpoints").glob("step-*"))
        return sum(file.stat().st_size for file in last.iterdir())

    def count(self, since_s: float) -> int:
        """Return how many checkpoints are there that were written since then."""
        found = (Path(self.folder.uri) / "checkpoints").glob("step-*/manifest.json")
        return sum(file.stat().st_mtime >= since_s for file in found)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)


@contextlib.contextmanager
def trainings(folder: Path) -> Iterator[tuple[Training, Training]]:
    """Run both, until the context is left."""
    with contextlib.ExitStack() as stack:
        both = []
        for name, every_s in (("with", EVERY_S), ("without", NEVER_S)):
            both.append(Training(folder, name, every_s))
            stack.callback(both[-1].close)
        for one in both:
            one.await_steps()
        yield both[0], both[1]


class Rounds:
    """What rounds found.

    Attributes:
        rates: steps per second, with and without.
        held: share of the time that the loop was held up, in %, of the run with checkpoints.
        megabytes: of a checkpoint.
    """

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {"with": [], "without": []}
        self.held: list[float] = []
        self.megabytes = 0.0

    def run(self) -> Timing:
        """Make one round; return the rate without checkpoints, which others may disturb."""
        with scratch() as folder, trainings(folder) as (ours, other):
            time.sleep(WARM_UP_S)
            since_s = time.time()
            time.sleep(WINDOW_S)
            until_s = time.time()
            found = [
                sum(since_s <= at_s < until_s for at_s in one.step_ends_s()) / (until_s - since_s)
                for one in (ours, other)
            ]
            assert ours.count(since_s) >= 2, "the two that are kept are of the window"
            assert other.count(since_s) == 0
            self.held.append(100 * ours.held_s(since_s, until_s) / (until_s - since_s))
            self.megabytes = ours.bytes() / 1e6
        self.rates["with"].append(found[0])
        self.rates["without"].append(found[1])
        return Timing(found[1], since_s, until_s)


def measure(repeat: int) -> Report:
    quiet, rounds = Quiet(), Rounds()
    kept: list[tuple[float, float, float]] = []
    for number in range(repeat):
        quiet.value(rounds.run)
        kept.append((rounds.rates["with"][-1], rounds.rates["without"][-1], rounds.held[-1]))
        progress(
            f"round {number + 1}/{repeat}: {kept[-1][0]:.2f} steps/s with, {kept[-1][1]:.2f} without, "
            f"held up {kept[-1][2]:.2f}%"
        )
    ours, other, held = (list(values) for values in zip(*kept, strict=True))
    cost = [100 * (1 - share) for share in ratios(ours, other)]
    rows = [
        Row(f"a checkpoint every {EVERY_S} s", ours, "steps/s"),
        Row("none", other, "steps/s"),
        Row("costs", cost, "%"),
        Row("holds up the loop for", held, "%"),
    ]
    figures = [Figure(f"what a checkpoint every {EVERY_S} s costs", rows[2].median, 3.0, False, unit="%")]
    return Report(f"Checkpoints of {rounds.megabytes:.0f} MB", rows, figures, [quiet.note])


if __name__ == "__main__":
    main(measure, repeat=3)
