"""Predicts what a sweep would cost: trials, how many side by side, worker hours, disk. It trains for seconds.

Some of the trials are trained for some steps, and the rest is arithmetic. How much a scheduler would save comes from a
simulation in which it decides on trials of random quality.
"""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean

from shoal import devices
from shoal.cluster.shard_store import spare_cpus
from shoal.cluster.tune_schedulers import make_scheduler
from shoal.errors import TrainingError
from shoal.runs.config import RunConfig
from shoal.tune.engine import Engine, PlannedSearch, Report
from shoal.tune.space.domains import Point
from shoal.tune.validate import SweepPlan, evaluations
from shoal.workflows.tune.probe import Probe, probe

MOST_PROBED = 32
MOST_SIMULATIONS, SIMULATED_TRIALS = 20, 2000
# Seconds, measured on 2 cores: joining or starting Ray; the report and the best model's verification.
START_S, END_S = 8.0, 3.5
# Of a distributed trial: the shortest start of its workers; CPU seconds of Ray Train's own actors, and of a worker.
WORKERS_START_S, CONTROLLER_CPU_S, WORKER_CPU_S = 8.0, 14.0, 4.0
TRACKING_S = 0.085  # CPU seconds of tracking per trial (benchmarks/sweep.py)
# Of a sweep: its pictures, which its report holds again, and what each trial adds to them up to MOST_DRAWN; the best
# model's pictures; a trial's row, run.json and result.json.
REPORT_BYTES, DRAWN_BYTES, MOST_DRAWN, BEST_BYTES, ROW_BYTES = 350_000, 55_000, 20, 130_000, 4_000


@dataclass(frozen=True)
class Span:
    """An expected value, and the lowest and highest that chance may lead to."""

    expected: float
    least: float
    most: float

    def map(self, increasing: Callable[[float], float]) -> "Span":
        """Return the span of an increasing function of this value."""
        return Span(increasing(self.expected), increasing(self.least), increasing(self.most))


@dataclass(frozen=True)
class Forecast:
    """What a sweep would cost.

    Attributes:
        slots: trials side by side.
        share: of all evaluations that the scheduler lets happen.
        infeasible: corners of the space that cannot be trained, and why.
    """

    trials: int
    slots: int
    worker_hours: Span
    seconds: float
    disk_bytes: Span
    share: Span
    infeasible: list[tuple[Point, str]]


def forecast(plan: SweepPlan) -> Forecast:
    """Predict a sweep's cost.

    Raises:
        TrainingError: the data is too large to try a trial on this machine, or a trial fails.
    """
    if plan.base.dataset_info is None:
        raise TrainingError(
            f"data.source='{plan.config.data.source}' is too large to try a trial here: sweep with "
            "tune.num_samples=1 and train.max_steps=100 to learn what a step costs"
        )
    scale = plan.config.scale
    kind = devices.find(scale.accelerator) if scale.use_gpu else devices.CPU
    has = {"CPU": float(os.cpu_count() or 1)} | {name: float(devices.count(kind)) for name in kind.resources}
    slots = plan.slots(has, spare_cpus(plan.base), kind)
    probes = probe(_samples(plan), slots, scale.most_workers)
    share = _share(plan)
    hours = share.map(lambda part: _worker_seconds(plan, probes, part, slots, has["CPU"]) / 3600)
    rounds = ceil(plan.total / slots)
    return Forecast(
        trials=plan.total,
        slots=slots,
        worker_hours=hours,
        seconds=START_S + hours.expected * 3600 / max(1, scale.most_workers) / plan.total * rounds + END_S,
        disk_bytes=_disk_bytes(plan, probes, share.expected),
        share=share,
        infeasible=plan.infeasible,
    )


def _worker_seconds(plan: SweepPlan, probes: Sequence[Probe], share: float, slots: int, cpus: float) -> float:
    """Return the seconds of work of all workers, if the scheduler lets a share of the training happen."""
    scale, workers = plan.config.scale, max(1, plan.config.scale.most_workers)
    seconds = plan.total * fmean(probe.fixed_s + share * probe.step_s * probe.steps for probe in probes)
    if plan.config.is_distributed:  # the workers of Ray Train are new for each trial
        rounds, rest = divmod(plan.total, slots)
        seconds += rounds * slots * _workers_start_s(workers, slots, cpus)
        seconds += rest * _workers_start_s(workers, rest, cpus)
    else:
        seconds += min(slots, plan.total) * fmean(
            probe.warm_s for probe in probes if probe.warm_s is not None
        )
    if slots * workers * scale.cpus_per_worker > cpus - 1:  # tracking takes its time from the trials
        seconds += plan.total * TRACKING_S
    return seconds * workers


def _workers_start_s(workers: int, trials: int, cpus: float) -> float:
    """Return the seconds in which the workers of a trial start, while those of `trials` start at once."""
    return max(WORKERS_START_S, trials * (CONTROLLER_CPU_S + workers * WORKER_CPU_S) / cpus)


def _disk_bytes(plan: SweepPlan, probes: Sequence[Probe], share: float) -> Span:
    """Return the bytes of the sweep's folder; they depend on which trials' checkpoints and model are kept."""
    trial = ROW_BYTES + fmean(
        probe.fixed_bytes + share * probe.journal_bytes * probe.steps for probe in probes
    )
    drawn = REPORT_BYTES + DRAWN_BYTES * min(plan.total, MOST_DRAWN)
    checkpoints = plan.config.tune.keep * (plan.config.checkpoint.keep + 1)  # the latest, and the best
    kept = [probe.weights_bytes + checkpoints * probe.checkpoint_bytes for probe in probes]
    always = drawn + plan.total * trial + BEST_BYTES + _package_bytes()
    return Span(fmean(kept), min(kept), max(kept)).map(lambda nbytes: always + nbytes)


def _samples(plan: SweepPlan) -> list[RunConfig]:
    """Return configs of trials in random order, so that the first few are a fair sample.

    These are the corners for a search that learns, since its points are not known yet.
    """
    search = plan.search()
    refused = [point for point, _ in plan.infeasible]
    if isinstance(search, PlannedSearch):
        order = list(range(search.total))
        random.Random(plan.config.seed).shuffle(order)
        points = [search.suggest(number) for number in order[:MOST_PROBED]]
    else:
        points = plan.corners
    sound = [point for point in points if point not in refused] or [plan.corners[0]]
    return [plan.config.trial(point, name="probe") for point in sound]


def _share(plan: SweepPlan) -> Span:
    """Return the share of all evaluations that the scheduler lets happen, for trials of random quality."""
    base = plan.base
    if plan.config.tune.scheduler == "none" or base.dataset_info is None:
        return Span(1.0, 1.0, 1.0)
    iterations = evaluations(base.config, base.dataset_info.lanes(base.preprocessing).steps)
    simulations = max(5, min(MOST_SIMULATIONS, SIMULATED_TRIALS // plan.total))
    shares = [_simulate(plan, iterations, seed) for seed in range(simulations)]
    return Span(fmean(shares), min(shares), max(shares))


def _simulate(plan: SweepPlan, iterations: int, seed: int) -> float:
    """Return the share in one sweep of one trial at a time; a trial has the same value at each evaluation."""
    config, rng = plan.config, random.Random(seed)
    scheduler = make_scheduler(config.tune, config.domains, config.mode, iterations, seed)
    tune = config.tune
    engine = Engine(plan.search(), scheduler, tune.repeat, tune.lag, reuse=tune.scheduler != "pbt")
    quality = [rng.random() for _ in range(plan.total)]
    done = [0] * plan.total
    while not engine.has_ended:
        engine.take_exploits()
        trial = engine.choose()
        if trial is None:
            break
        decision = "continue"
        while decision == "continue" and not trial.has_ended:
            done[trial.number] += 1
            is_last = done[trial.number] == iterations
            engine.report(
                trial, Report(done[trial.number], done[trial.number], quality[trial.number]), is_last
            )
            decision = next((found for other, found in engine.decisions() if other is trial), "continue")
        if decision == "stop":
            engine.stop(trial)
        elif decision == "pause":
            engine.release(trial)
    return sum(done) / (iterations * plan.total)


def _package_bytes() -> int:
    """Return the bytes of Shoal's own code, which is packaged with the model."""
    return sum(path.stat().st_size for path in Path(__file__).resolve().parents[2].rglob("*.py"))
