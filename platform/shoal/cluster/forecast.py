"""What a sweep would cost: trials, how many side by side, worker hours, disk. Trains for seconds and leaves nothing.

A few of its trials are run for some steps in processes of their own, as many at once as would run side by side, and
the rest is arithmetic. How much a scheduler would cut is found by letting it judge trials of random quality.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from shoal.cluster import session
from shoal.cluster.config import RunConfig
from shoal.cluster.deal import spare_cpus
from shoal.cluster.plan import check
from shoal.cluster.schedulers import make_scheduler
from shoal.cluster.sweep_plan import SweepPlan, evaluations
from shoal.cluster.worker import OUTCOME, Assignment, resident_shard, work
from shoal.collective import Alone
from shoal.config import build
from shoal.console import duration
from shoal.data.prepare import deal_here
from shoal.errors import TrainingError
from shoal.models import readable
from shoal.runfolder import CHECKPOINTS, JOURNAL, RunFolder
from shoal.space import Point
from shoal.sweep.engine import Engine, Planned, Report
from shoal.sweep.report import show_params
from shoal.train import total_steps

PROBED_TRIALS, PROBED_STEPS = 4, 300
SIMULATIONS = 5
# Measured on 2 cores: joining or starting Ray, and a TorchTrainer's workers.
START_S, WORKERS_START_S = 8.0, 10.0
REPORT_BYTES = 900_000


@dataclass(frozen=True)
class Probe:
    """What some steps of a trial cost."""

    fixed_s: float
    step_s: float
    steps: int  # of the whole trial
    journal_bytes: float  # a step
    checkpoint_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a sweep would cost."""

    trials: int
    slots: int
    worker_hours: float
    seconds: float
    disk_bytes: float
    share: float  # of all evaluations that the scheduler lets happen
    infeasible: list[tuple[Point, str]]

    def text(self) -> str:
        """Lay it out for a person."""
        cut = f" (the scheduler leaves {self.share:.0%} of the training)" if self.share < 1 else ""
        lines = [
            f"trials         {self.trials}",
            f"side by side   {self.slots}",
            f"worker-hours   {self.worker_hours:.4f} ({self.worker_hours * 3600:.0f} s){cut}",
            f"time           about {duration(self.seconds)}",
            f"disk           {readable(self.disk_bytes)}B",
        ]
        lines += [f"infeasible     {show_params(point)}: {reason}" for point, reason in self.infeasible]
        return "\n".join([*lines, "nothing was started"])


def forecast(plan: SweepPlan) -> Forecast:
    """Foresee a sweep's cost.

    Raises:
        TrainingError: the data is too large to try a trial on this machine, or a trial fails.
    """
    if plan.base.prepared is None:
        raise TrainingError(
            f"data.source='{plan.config.data.source}' is too large to try a trial here: sweep with "
            "tune.num_samples=1 and train.max_steps=100 to learn what a step costs"
        )
    config, scale = plan.config, plan.config.scale
    gpus = session.local_gpus()
    has = {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}
    slots = plan.slots(has, spare_cpus(plan.base), bool(scale.use_gpu and gpus))
    probes = _probe(_samples(plan), slots, scale.num_workers)
    share = _share(plan)
    start_s = WORKERS_START_S if config.is_distributed else 0.0
    trial_s = start_s + fmean(probe.fixed_s + share * probe.step_s * probe.steps for probe in probes)
    disk = float(REPORT_BYTES + _package_bytes())
    disk += plan.total * share * fmean(probe.journal_bytes * probe.steps for probe in probes)
    disk += config.tune.keep * config.checkpoint.keep * max(probe.checkpoint_bytes for probe in probes)
    return Forecast(
        trials=plan.total,
        slots=slots,
        worker_hours=plan.total * scale.num_workers * trial_s / 3600,
        seconds=START_S + plan.total * trial_s / slots,
        disk_bytes=disk,
        share=share,
        infeasible=plan.infeasible,
    )


def _samples(plan: SweepPlan) -> list[RunConfig]:
    """Return some trials' configs, evenly spaced over the planned ones; corners where points come one by one."""
    search = plan.search()
    refused = [point for point, _ in plan.infeasible]
    if isinstance(search, Planned):
        count = min(PROBED_TRIALS, search.total)
        points = [search.suggest(number * search.total // count) for number in range(count)]
    else:
        points = plan.corners
    sound = [point for point in points if point not in refused] or [plan.corners[0]]
    return [plan.config.trial(point, name="probe") for point in sound[:PROBED_TRIALS]]


def _probe(configs: Sequence[RunConfig], slots: int, num_workers: int) -> list[Probe]:
    """Try each config, with as many processes at work as trials would run side by side."""
    tasks = [json.dumps([config.model_dump(mode="json"), num_workers]) for config in configs]
    tasks = [tasks[number % len(tasks)] for number in range(max(len(tasks), slots))]
    with ThreadPoolExecutor(slots) as pool:
        return list(pool.map(_probe_apart, tasks))


def _probe_apart(task: str) -> Probe:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cluster.forecast"], input=task, capture_output=True, text=True
    )
    if done.returncode:
        raise TrainingError(f"a trial failed when it was tried: {done.stderr.strip().splitlines()[-1]}")
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def probe(config: RunConfig) -> Probe:
    """Train for some steps in a folder that is gone afterwards; once before it, to warm up."""
    torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    plan = check(config)
    assert plan.prepared is not None
    hand = deal_here(plan.source, plan.recipe, plan.prepared, 1)[0]
    steps = total_steps(config.train, plan.prepared.lanes(plan.recipe).steps)
    for tried in (min(steps, 20), min(steps, PROBED_STEPS)):
        short = config.replace({"train.max_steps": tried})
        with tempfile.TemporaryDirectory() as scratch:
            folder = RunFolder(scratch)
            folder.mint(name="probe")
            told = Assignment(short, folder.uri, 1, plan.prepared, plan.recipe)
            since = time.perf_counter()
            device = torch.device("cuda:0" if config.scale.use_gpu and session.local_gpus() else "cpu")
            work(told, resident_shard(told, hand, 0, 1, device), Alone(), device, watches_system=False)
            seconds = time.perf_counter() - since
            outcome = folder.read_json(OUTCOME)
            journal, checkpoints = _bytes(Path(scratch) / JOURNAL), Path(scratch) / CHECKPOINTS
            checkpoint = max(_bytes(path) for path in checkpoints.glob("step-*"))
    spent = outcome["attempt_seconds"]
    return Probe(seconds - spent, spent / tried, steps, journal / tried, checkpoint)


def _share(plan: SweepPlan) -> float:
    """Return which share of all evaluations a scheduler lets happen, when trials are of random quality."""
    if plan.config.tune.scheduler == "none" or plan.base.prepared is None:
        return 1.0
    base = plan.base
    per_epoch = base.prepared.lanes(base.recipe).steps  # type: ignore[union-attr]
    iterations = evaluations(base.config, per_epoch)
    return fmean(_simulate(plan, iterations, seed) for seed in range(SIMULATIONS))


def _simulate(plan: SweepPlan, iterations: int, seed: int) -> float:
    config, draw = plan.config, random.Random(seed)
    scheduler = make_scheduler(config.tune, config.domains, config.mode, iterations, seed)
    engine = Engine(plan.search(), scheduler, config.tune.repeat)
    quality = [draw.random() for _ in range(plan.total)]
    done = [0] * plan.total
    while not engine.has_ended:
        engine.take_clones()
        trial = engine.choose()
        if trial is None:
            break
        verdict = "continue"
        while verdict == "continue" and not trial.has_ended:
            done[trial.number] += 1
            is_last = done[trial.number] == iterations
            engine.report(
                trial, Report(done[trial.number], done[trial.number], quality[trial.number]), is_last
            )
            verdict = next((one for which, one in engine.verdicts() if which is trial), "continue")
        if verdict == "stop":
            engine.stop(trial)
        elif verdict == "pause":
            engine.release(trial)
    return sum(done) / (iterations * plan.total)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _package_bytes() -> int:
    """Bytes of Shoal's own code, which travels with the model."""
    return sum(path.stat().st_size for path in Path(__file__).resolve().parents[1].rglob("*.py"))


def main() -> None:
    """Try the trial that standard input describes, and print what it cost."""
    described, num_workers = json.load(sys.stdin)
    config = build(RunConfig, described)
    share = {"data.global_batch_size": max(1, config.data.global_batch_size // num_workers)}
    alone = {"scale.num_workers": 0, "scale.strategy": "ddp", "scale.tp_size": None}
    print(json.dumps(vars(probe(config.replace(alone | share)))))


if __name__ == "__main__":
    main()
