"""A sweep with made-up trials: the driver's own work on a real engine, state and run folder, without Ray and MLflow.

`SimulatedPool` stands for the actors and answers at once. It writes into a trial's folder what a worker would. What it
takes is counted by itself and is no work of the driver. As a script, with the number of trials and settings of the
sweep: prints the seconds of the driver and its memory, as JSON.
"""

import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil

from shoal.cluster.actor_pool import Event
from shoal.cluster.dataset_cache import CachedDataset, DatasetCache
from shoal.cluster.shard_store import ShardRefs
from shoal.cluster.trial_actor import TrialEnded, TrialReport, TrialSpec, TrialStarted
from shoal.data.dataset_info import DatasetInfo
from shoal.devices import CPU
from shoal.runs.validate import RunPlan
from shoal.storage.records import Metadata, ModelRecord, Outcome, Progress
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import Journal
from shoal.training.loop import Decision
from shoal.tune.config import load_sweep
from shoal.tune.engine import Trial
from shoal.tune.validate import validate_sweep
from shoal.workflows.tune.state import SweepState, SweepStatus
from shoal.workflows.tune.sweep import assemble

STEPS_PER_EVALUATION = 10


class SimulatedDatasets(DatasetCache):
    """Data sets without Ray's object store."""

    def put(self, plan: RunPlan) -> DatasetInfo:
        assert plan.dataset_info is not None
        self._keep(CachedDataset(plan, plan.dataset_info, {1: ShardRefs([[None]], True)}))
        return plan.dataset_info


@dataclass
class _Running:
    """A trial at work."""

    folder: RunFolder
    waits_for_decision: bool
    curve: list[float]
    evaluation: int = 0
    decision: Decision | None = "continue"


class SimulatedPool:
    """Has the interface of `ActorPool`; each trial's values are a function of its point.

    Attributes:
        seconds: CPU time spent here.
        on_event: called after each call of `wait`, outside of `seconds`.
    """

    def __init__(self, size: int, metric: str, values: Callable[[Trial], list[float]]) -> None:
        self.size, self.seconds = size, 0.0
        self._metric, self._values = metric, values
        self._busy: dict[Trial, _Running] = {}
        self._events: deque[tuple[Trial, Event]] = deque()
        self._metadata = Metadata(
            params={"optim.lr": 0.1}, model=ModelRecord(parameters=1000, bytes=4000, flops_per_sample=2000)
        ).to_bytes()

    @property
    def free(self) -> int:
        return self.size - len(self._busy)

    def holds(self, key: Trial) -> bool:
        return key in self._busy

    def begin(self, key: Trial, spec: TrialSpec) -> None:
        since = time.process_time()
        folder = RunFolder(spec.worker.folder)
        folder.write(Metadata.file, self._metadata)
        self._busy[key] = _Running(folder, spec.waits_for_decision, self._values(key))
        self._events.append((key, TrialStarted("node")))
        self.seconds += time.process_time() - since

    def answer(self, key: Trial, decision: Decision) -> None:
        self._busy[key].decision = decision

    def wait(self, timeout_s: float) -> list[tuple[Trial, Event]]:
        since = time.process_time()
        events = list(self._events)
        self._events.clear()
        for trial, running in list(self._busy.items()):
            while running.decision == "continue" and len(events) < 64:
                events.append((trial, self._next(trial, running)))
                if trial not in self._busy or running.waits_for_decision:
                    break
            if running.decision in ("stop", "pause"):
                events.append((trial, self._end(trial, running, running.decision)))
        self.seconds += time.process_time() - since
        return events

    def close(self) -> None:
        self._busy.clear()

    def _next(self, trial: Trial, running: _Running) -> Event:
        running.evaluation += 1
        if running.evaluation == len(running.curve):
            return self._end(trial, running, "finished")
        running.decision = None if running.waits_for_decision else "continue"
        step = running.evaluation * STEPS_PER_EVALUATION
        return TrialReport(step, {self._metric: running.curve[running.evaluation - 1]})

    def _end(self, trial: Trial, running: _Running, how: Any) -> TrialEnded:
        """Write the trial's journal and outcome, as its worker does."""
        lines = [
            json.dumps({"step": number * STEPS_PER_EVALUATION, "ms": 0, "metrics": {self._metric: value}})
            for number, value in enumerate(running.curve[: running.evaluation], 1)
        ]
        running.folder.write("journal/0001.jsonl", ("\n".join(lines) + "\n").encode())
        step, value = running.evaluation * STEPS_PER_EVALUATION, running.curve[running.evaluation - 1]
        outcome = Outcome(
            ended=how,
            progress=Progress(step=step, samples=64 * step, metrics={self._metric: value}),
            steps_planned=step,
            seconds=1.0,
            attempt_seconds=1.0,
        )
        running.folder.save(outcome)
        del self._busy[trial]
        return TrialEnded(how, 1.0, outcome)


@dataclass
class Spent:
    """What a simulated sweep takes.

    Attributes:
        driver_s: CPU seconds of the driver from the first trial to the last one, without those of the pool.
        memory: the driver's resident bytes, by the number of trials that had ended.
        state: of the trials, at the end.
    """

    state: SweepState
    driver_s: float = 0.0
    memory: dict[int, int] = field(default_factory=dict)


def simulate(
    folder: Path, trials: int, reports: int, *settings: str, slots: int = 4, every: int = 1000
) -> Spent:
    """Run a sweep of made-up trials.

    Args:
        folder: what a sweep writes goes there.
        reports: evaluations of each trial.
        settings: of the sweep, besides.
        every: memory is noted after so many trials.
    """
    config = load_sweep(
        None,
        [
            "data.source=sklearn:digits",
            "optim.lr=loguniform(1e-4,1e-1)",
            f"tune.num_samples={trials}",
            f"train.max_steps={reports * STEPS_PER_EVALUATION}",
            f"train.evaluate_every_steps={STEPS_PER_EVALUATION}",
            "train.epochs=1000000",
            *settings,
        ],
    )
    plan = validate_sweep(config, lambda scale, spare_cpus: CPU)
    run_folder = RunFolder(str(folder / "simulated"))
    run_folder.create()
    run_folder.create_identity(name="simulated", experiment="shoal", is_sweep=True)
    spent = Spent(SweepState(plan, run_folder, time.time()))
    datasets = SimulatedDatasets(config)
    datasets.put(plan.base)
    pool = SimulatedPool(slots, config.tune.metric, lambda trial: curve(trial, reports))
    process = psutil.Process()

    def listen(status: SweepStatus) -> None:
        if status.ended // every * every not in spent.memory:
            spent.memory[status.ended // every * every] = process.memory_info().rss

    since = time.process_time()
    loop = assemble(
        spent.state,
        cast(Any, pool),
        datasets,
        Journal(run_folder, 1),
        attempt=1,
        kind=CPU,
        listen=listen,
    )
    loop.run()
    spent.driver_s = time.process_time() - since - pool.seconds
    return spent


def curve(trial: Trial, reports: int) -> list[float]:
    """Return a falling loss; trials differ, and the next one is not always better."""
    level = (trial.number * 7919 % 10007) / 10007
    return [level + 1.0 / (1 + report) for report in range(reports)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        count, *more = sys.argv[1:]
        done = simulate(Path(scratch), int(count), 20, *more)
        print(json.dumps({"driver_s": done.driver_s, "memory": done.memory}))
