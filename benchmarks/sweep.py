"""Measures sweeps: Shoal's `jobs/tune.py` against Ray Tune with Ray Train, Ray Tune alone, and an Optuna loop.

16 trials, 4 widths by 4 learning rates, of an MLP on scikit-learn's digits: 5 epochs, batches of 32, evaluated
after each epoch, one process and one compute thread per trial, two trials side by side (the Optuna loop: one after
another). Times are wall seconds from the command to its last trial's result, with a Ray cluster of two CPUs
started within them. Shoal's end when the last trial's record is in MLflow: it alone records anything, every step
of every trial, and writes checkpoints; the peers keep what Tune keeps.

`--parts speed,long,overhead,driver,scale` picks what is measured (default: all):

- speed: the 16 trials, all peers.
- long: 4 trials of about 20 s each, where training is what counts, against the Optuna loop.
- overhead: what one trial more takes beyond its training, and whether that grows with the number of trials; the
  epoch is one, the training is counted as the Optuna loop takes it with a fused Adam, as Shoal's is.
- driver: CPU and memory of the driver's process alone while it runs 200 trials.
- scale: the same of 10,000 made-up trials, without Ray and MLflow (`simulated_sweep.py`).
"""

import argparse
import contextlib
import json
import math
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from harness import (
    PEERS,
    ROOT,
    TIMEOUT_S,
    Figure,
    Report,
    Row,
    end,
    environment,
    main,
    progress,
    ratios,
    refuse_a_running_cluster,
    run,
    scratch,
)
from peers.sweep_workload import BATCH, EPOCHS, TRIALS, WIDTHS, learning_rates
from quiet import Quiet, Timing

SIDE_BY_SIDE = 2
LONG_TRIALS, LONG_TRIAL_S, PROBE_REPEAT = 4, 20.0, 10
FEWER, MORE = TRIALS, 48
FLAT = (10, 100, 200)
DRIVER_TRIALS, EARLY_TRIAL = 200, 50
SIMULATED = 10_000
SAMPLE_S = 0.25


@dataclass(frozen=True)
class Sample:
    """What the driver's process has used, its children left out."""

    at_s: float
    cpu_s: float
    rss: int


@dataclass(frozen=True)
class Sweep:
    """A finished run of `jobs/tune.py`."""

    started_s: float
    ended_s: float  # when the last trial's record was in MLflow
    trials_s: list[tuple[float, float]]  # start and end of each, in the order of their ends
    samples: list[Sample]

    @property
    def timing(self) -> Timing:
        return Timing(self.ended_s - self.started_s, self.started_s, self.ended_s)

    @property
    def driver_share(self) -> float:
        """CPU seconds of the driver per second, from the first trial's start to the last one's end."""
        first, last = self._at(min(start for start, _ in self.trials_s)), self._at(self.trials_s[-1][1])
        return (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s)

    def memory(self, trials: int) -> int:
        """Return the driver's resident bytes when `trials` trials had ended."""
        return self._at(self.trials_s[trials - 1][1]).rss

    def _at(self, at_s: float) -> Sample:
        return next(sample for sample in reversed(self.samples) if sample.at_s <= at_s)


def peer(name: str, *more: str, trials: int = TRIALS) -> tuple[Timing, dict[str, Any]]:
    """Run a peer; return its seconds, from the command to the last result, and all that it wrote.

    Raises:
        SystemExit: it did not bring as many trials as it was asked for.
    """
    with scratch() as folder:
        out = folder / "out.json"
        started_s = time.time()
        run([sys.executable, str(PEERS / f"{name}.py"), f"--out={out}", f"--trials={trials}", *more])
        found = json.loads(out.read_text())
    if len(found["metrics"]) != trials:
        raise SystemExit(f"{name} brought {len(found['metrics'])} of {trials} trials")
    return Timing(found["ended"] - started_s, started_s, found["ended"]), found


def peer_seconds(name: str, *more: str, trials: int = TRIALS) -> Timing:
    return peer(name, *more, trials=trials)[0]


def shoal(trials: int = TRIALS, epochs: int = EPOCHS, widths: Sequence[int] = WIDTHS) -> Sweep:
    """Run `jobs/tune.py` as a user does, on a grid, with no cluster to join.

    The tracking store is there already, as it is but for the first job of all: MLflow takes 2 s to make its tables.

    Raises:
        SystemExit: it failed, or trials are missing in MLflow.
    """
    rates = learning_rates(trials // len(widths))
    with scratch() as folder:
        store = folder / "mlflow.db"
        command = [
            sys.executable,
            "jobs/tune.py",
            f"data.global_batch_size={BATCH}",
            f"train.epochs={epochs}",
        ]
        command += [f"model.width={_grid(widths)}", f"optim.lr={_grid(rates)}", "tune.scheduler=none"]
        command += [f"tune.max_concurrent_trials={SIDE_BY_SIDE}", "experiment_name=sweep"]
        command += [f"storage_path={folder}/runs", f"track.tracking_uri=sqlite:///{store}"]
        run([sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{store}"])
        started_s = time.time()
        samples = run_watched(command, folder)
        *_, last = (folder / "stdout").read_text().split()
        ended_s = json.loads(Path(last).read_text())["records_complete"]
        trials_s = recorded_trials(store)
    if len(trials_s) != trials:
        raise SystemExit(f"MLflow has {len(trials_s)} finished runs of {trials} trials")
    return Sweep(started_s, ended_s, trials_s, samples)


def shoal_seconds(trials: int = TRIALS, epochs: int = EPOCHS, widths: Sequence[int] = WIDTHS) -> Timing:
    return shoal(trials, epochs, widths).timing


def run_watched(command: Sequence[str], folder: Path) -> list[Sample]:
    """Run a process to its end, sampling what it uses; what it says goes to `folder`.

    Raises:
        SystemExit: it failed; the message ends with what it said last.
    """
    said = [folder / "stdout", folder / "stderr"]
    with said[0].open("w") as stdout, said[1].open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=stdout, stderr=stderr)
        try:
            samples = _watch(process)
        finally:
            if process.poll() is None:
                end(psutil.Process(process.pid))
                process.wait()
    if process.returncode:
        text = "".join(file.read_text() for file in said).strip()[-3000:]
        raise SystemExit(f"{Path(command[1]).name} ended with {process.returncode}:\n{text}")
    return samples


def _watch(process: subprocess.Popen[bytes]) -> list[Sample]:
    watched, samples = psutil.Process(process.pid), []
    end = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(psutil.Error):
            spent = watched.cpu_times()
            samples.append(Sample(time.time(), spent.user + spent.system, watched.memory_info().rss))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SAMPLE_S)
    if process.poll() is None:
        raise SystemExit(f"{process.args!r} took more than {TIMEOUT_S} s")
    return samples


def recorded_trials(store: Path) -> list[tuple[float, float]]:
    """Return start and end of each finished trial in MLflow's tables, in the order of their ends."""
    query = (
        "SELECT start_time, end_time FROM runs JOIN tags USING (run_uuid) "
        "WHERE tags.key = 'mlflow.parentRunId' AND status = 'FINISHED' ORDER BY end_time"
    )
    with contextlib.closing(sqlite3.connect(store)) as database:
        return [(start_ms / 1000, end_ms / 1000) for start_ms, end_ms in database.execute(query)]


def measure_speed(repeat: int, quiet: Quiet) -> Report:
    contestants: dict[str, Callable[[], Timing]] = {
        "Tune + Train": partial(peer_seconds, "tune_train"),
        "Shoal": shoal_seconds,
        "Tune, a function": partial(peer_seconds, "tune_function"),
        "Tune, a function, reused actors": partial(peer_seconds, "tune_function", "--reuse-actors"),
        "Optuna loop": partial(peer_seconds, "optuna_loop"),
    }
    spent = _alternate(contestants, repeat, quiet)
    faster = _faster(spent)
    targets = {"Tune + Train": 12.0, "Tune, a function": 3.0, "Tune, a function, reused actors": 1.0}
    figures = [
        Figure(f"{TRIALS} trials: times faster than {name}", faster[name].median, target, is_at_least=True)
        for name, target in targets.items()
    ]
    return Report("", _rows(f"{TRIALS} trials: ", spent, faster), figures)


def measure_long(repeat: int, quiet: Quiet) -> Report:
    _, probe = peer("optuna_loop", f"--repeat-epochs={PROBE_REPEAT}", trials=LONG_TRIALS)
    times = math.ceil(PROBE_REPEAT * LONG_TRIAL_S / min(probe["trial_s"].values()))
    loop = partial(peer_seconds, "optuna_loop", f"--repeat-epochs={times}", trials=LONG_TRIALS)
    contestants: dict[str, Callable[[], Timing]] = {
        "Optuna loop": loop,
        "Shoal": partial(shoal_seconds, LONG_TRIALS, EPOCHS * times),
        "Optuna loop, fused Adam": partial(loop, "--fused"),
    }
    spent = _alternate(contestants, repeat, quiet)
    faster = _faster(spent)
    figures = [
        Figure(
            "long trials: times faster than Optuna loop",
            faster["Optuna loop"].median,
            1.6,
            is_at_least=True,
        )
    ]
    note = f"A long trial is {EPOCHS * times} epochs: {LONG_TRIAL_S:g} s or more in the Optuna loop, by a short probe."
    return Report("", _rows("long trials: ", spent, faster), figures, [note])


def measure_overhead(repeat: int, quiet: Quiet) -> Report:
    contestants: dict[str, Callable[[], Timing]] = {
        "training of one": training_seconds,
        **{f"{trials}": partial(shoal_seconds, trials, 1) for trials in (FEWER, MORE)},
        # Two widths, so that 10 trials are a grid too.
        **{f"{trials}, two widths": partial(shoal_seconds, trials, 1, WIDTHS[:2]) for trials in FLAT},
    }
    spent = _alternate(contestants, repeat, quiet)
    training, fewer, more, *flat = spent.values()
    over = [
        slope - pure / SIDE_BY_SIDE
        for slope, pure in zip(_slopes(fewer, more, MORE - FEWER), training, strict=True)
    ]
    early, late = (_slopes(flat[place], flat[place + 1], FLAT[place + 1] - FLAT[place]) for place in (0, 1))
    change = [100 * abs(second / first - 1) for first, second in zip(early, late, strict=True)]
    rows = [
        *(Row(f"trials of one epoch: {name}", seconds, "s") for name, seconds in spent.items()),
        Row("overhead of a trial more", over, "s"),
        Row(f"a trial more, from {FLAT[0]} to {FLAT[1]}", early, "s"),
        Row(f"a trial more, from {FLAT[1]} to {FLAT[2]}", late, "s"),
        Row("change of the slope", change, "%"),
    ]
    figures = [
        Figure("overhead of a trial more", rows[-4].median, 0.3, is_at_least=False, unit="s"),
        Figure("change of what a trial more takes", rows[-1].median, 25.0, is_at_least=False, unit="%"),
    ]
    return Report("", rows, figures)


def _slopes(short: Sequence[float], long: Sequence[float], trials: int) -> list[float]:
    """Return the seconds of each trial more, round by round."""
    return [(more - fewer) / trials for fewer, more in zip(short, long, strict=True)]


def training_seconds() -> Timing:
    """Return what one of the trials beyond the first 16 takes to train, with no process to start."""
    timing, found = peer("optuna_loop", "--epochs=1", "--fused", trials=MORE)
    return Timing(mean(list(found["trial_s"].values())[FEWER:]), timing.since_s, timing.until_s)


def measure_driver(repeat: int, quiet: Quiet) -> Report:
    shares: list[float] = []
    growths: list[float] = []
    for number in range(repeat):
        kept: dict[float, Sweep] = {}
        shares.append(quiet.value(partial(driver_percent, kept)))
        sweep = kept[shares[-1]]
        growths.append(100 * (sweep.memory(DRIVER_TRIALS) / sweep.memory(EARLY_TRIAL) - 1))
        progress(f"round {number + 1}/{repeat}: driver {shares[-1]:.1f}% CPU, {growths[-1]:+.1f}% memory")
    rows = [
        Row("driver: CPU of one core", shares, "%"),
        Row(f"driver: memory at trial {DRIVER_TRIALS} above trial {EARLY_TRIAL}", growths, "%"),
    ]
    most = (25.0, 10.0)
    figures = [
        Figure(row.name, row.median, target, is_at_least=False, unit="%")
        for row, target in zip(rows, most, strict=True)
    ]
    return Report("", rows, figures)


def driver_percent(kept: dict[float, Sweep]) -> Timing:
    """Return the driver's CPU time in percent of one core; the sweep is kept under that value."""
    sweep = shoal(DRIVER_TRIALS)
    percent = 100 * sweep.driver_share
    kept[percent] = sweep
    return Timing(percent, sweep.started_s, sweep.ended_s)


def measure_scale(repeat: int, quiet: Quiet) -> Report:
    """Run sweeps of made-up trials, once each: what the driver takes, and whether its memory grows."""
    rows: list[Row] = []
    for scheduler in ("none", "asha", "median"):
        command = [
            sys.executable,
            "benchmarks/simulated_sweep.py",
            str(SIMULATED),
            f"tune.scheduler={scheduler}",
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        memory = {int(ended): rss for ended, rss in found["memory"].items()}
        growth = 100 * (memory[SIMULATED] / memory[SIMULATED // 10] - 1)
        name = f"{SIMULATED} made-up trials of 20 reports, {scheduler}"
        rows += [
            Row(f"{name}: CPU of the driver", [found["driver_s"]], "s"),
            Row(f"{name}: memory above trial {SIMULATED // 10}", [growth], "%"),
        ]
        progress(f"{name}: {found['driver_s']:.0f} s, {growth:+.1f}% memory")
    figures = [
        Figure(row.name, row.median, {"s": 180.0, "%": 5.0}[row.unit], is_at_least=False, unit=row.unit)
        for row in rows
    ]
    return Report("", rows, figures)


PARTS: dict[str, Callable[[int, Quiet], Report]] = {
    "speed": measure_speed,
    "long": measure_long,
    "overhead": measure_overhead,
    "driver": measure_driver,
    "scale": measure_scale,
}


def measure(parts: Sequence[str], repeat: int) -> Report:
    refuse_a_running_cluster("jobs/tune.py")
    quiet = Quiet()
    reports = [PARTS[part](repeat, quiet) for part in parts]
    return Report(
        "Sweeps of small trials, two side by side",
        [row for report in reports for row in report.rows],
        [figure for report in reports for figure in report.figures],
        [*(note for report in reports for note in report.notes), quiet.note],
    )


def _alternate(
    contestants: dict[str, Callable[[], Timing]], repeat: int, quiet: Quiet
) -> dict[str, list[float]]:
    """Return the seconds of each, round by round."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeat):
        for name, contestant in contestants.items():
            spent[name].append(quiet.value(contestant))
            progress(f"round {number + 1}/{repeat}: {name} {spent[name][-1]:.3g} s")
    return spent


def _faster(spent: dict[str, list[float]]) -> dict[str, Row]:
    """Return how many times faster Shoal was than each other."""
    others = {name: seconds for name, seconds in spent.items() if name != "Shoal"}
    return {
        name: Row(f"{name} / Shoal", ratios(theirs, spent["Shoal"]), "x") for name, theirs in others.items()
    }


def _rows(title: str, spent: dict[str, list[float]], faster: dict[str, Row]) -> list[Row]:
    rows = [*(Row(name, seconds, "s") for name, seconds in spent.items()), *faster.values()]
    return [Row(f"{title}{row.name}", row.values, row.unit) for row in rows]


def _grid(values: Sequence[float]) -> str:
    return f"grid({', '.join(str(value) for value in values)})"


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"write some of {','.join(PARTS)}")
    return chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--parts", type=_parts, default=list(PARTS))
    given, sys.argv[1:] = parser.parse_known_args()
    main(partial(measure, given.parts), repeat=3)
