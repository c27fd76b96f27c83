"""Measures how long a training stands still when a host is gone and a spare one is there, on hosts of this machine.

Two workers train on three hosts with a CPU each, MLflow on PostgreSQL is on a fourth (`tests/host_site.py`). A host
that trains is powered off, or cut off silently; measured are the seconds until the first step after that, by the time
of its point in the journal.
"""

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import ROOT, Figure, Report, Row, main, progress

sys.path.insert(0, str(ROOT / "tests"))  # whose hosts these are

from host_site import HostSite, HostTarget, cut_off, power_off
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader

CHECKPOINT_EVERY = 40
SETTINGS = (
    "run_name=run",
    "model.name=slow:Net",
    "data.source=synthetic:classification?rows=1000",
    "train.epochs=100000",
    "train.max_steps=100000",
    f"checkpoint.every_steps={CHECKPOINT_EVERY}",
    "scale.num_workers=2",
)
STEP_BEFORE, LIMIT_S = 200, 120.0
AIMS_S: dict[str, tuple[Callable[[HostTarget], None], float]] = {
    "powered off": (power_off, 25.0),
    "cut off silently": (cut_off, 30.0),
}


def pause_s(site: HostSite, name: str, disturb: Callable[[HostTarget], None]) -> float:
    """Return the seconds from the loss of a host until a training makes steps again."""
    site.make_ready()
    with site.storage("hosts", name) as storage:
        own = (f"experiment_name={name}", f"storage_path={storage.of_job}")
        process = site.start(name, "train", *SETTINGS, *own, f"track.tracking_uri={site.tracking_uri}")
        reader = JournalReader(RunFolder(f"{storage.here}/{name}/run"))
        try:
            await_point(reader, process, lambda step, _: step >= STEP_BEFORE)
            disturb(HostTarget(site, process, random.Random(name)))
            lost_ms = time.time() * 1000 + 500  # a step that was being made may end
            return (await_point(reader, process, lambda _, at_ms: at_ms > lost_ms) - lost_ms + 500) / 1000
        finally:
            site.kill_all(name)
            process.communicate()


def await_point(reader: JournalReader, process: object, found: Callable[[int, int], bool]) -> float:
    """Return the time of the first training loss whose step and time pass, in milliseconds.

    Raises:
        SystemExit: that takes too long.
    """
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        for point in reader.read():
            if point.key == "train/loss" and found(point.step, point.time_ms):
                return point.time_ms
        time.sleep(0.2)
    raise SystemExit(f"no such step within {LIMIT_S:.0f} s: {process}")


@contextlib.contextmanager
def hosts() -> Iterator[HostSite]:
    # A short path, which PostgreSQL's user may go through.
    with tempfile.TemporaryDirectory(prefix="shoal-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with HostSite(Path(folder)) as site:
            yield site


def measure(repeat: int) -> Report:
    title = "A host is lost, and a spare one is there"
    if reason := HostSite.reason():
        return Report(title, [], [], [f"Not measured, for want of hosts: {reason}"])
    found: dict[str, list[float]] = {name: [] for name in AIMS_S}
    with hosts() as site:
        for number in range(repeat):
            for name, (disturb, _) in AIMS_S.items():
                found[name].append(pause_s(site, f"{name.replace(' ', '-')}-{number}", disturb))
                progress(f"round {number + 1}/{repeat}: {name}, {found[name][-1]:.1f} s")
    rows = [Row(f"host {name}, until the next step", seconds, "s") for name, seconds in found.items()]
    figures = [
        Figure(row.name, row.median, aim_s, is_at_least=False, unit="s")
        for row, (_, aim_s) in zip(rows, AIMS_S.values(), strict=True)
    ]
    return Report(title, rows, figures)


if __name__ == "__main__":
    main(measure, repeat=3)
