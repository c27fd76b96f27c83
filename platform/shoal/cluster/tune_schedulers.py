"""Ray Tune's schedulers for the sweep engine: which trials are stopped, paused, or go on from another's weights.

They are Ray Tune's own classes, called as Ray Tune's controller calls them; what they ask of a controller and its
trials is answered from the engine's. Time is counted in evaluations (`training_iteration`). Their random choices
come from a state of their own, a function of the sweep's seed.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from shoal.tune.config import TuneConfig
from shoal.tune.engine import Clone, Decision, Report, Scheduler, Trial
from shoal.tune.space.domains import (
    Choice,
    Domain,
    Grid,
    LogUniform,
    Point,
    QUniform,
    RandInt,
    Space,
    Uniform,
)
from shoal.tune.trials import Mode

# A trial is first judged after a ninth of its evaluations, then at thrice as many: three rungs, a third goes on.
REDUCTION = 3
# Population based training exchanges weights this often in a trial's life.
EXCHANGES = 5

VERDICTS: dict[str, Decision] = {"CONTINUE": "continue", "NOOP": "pause", "STOP": "stop", "PAUSE": "pause"}


class Fifo:
    """No scheduler: trials run in their order, each to its end."""

    waits_for_decision = is_ordered = False

    def __init__(self) -> None:
        self._waiting: list[Trial] = []

    def add(self, trial: Trial) -> None:
        self._waiting.append(trial)

    def decide(self, trial: Trial, report: Report) -> Decision:
        return "continue"

    def complete(self, trial: Trial, report: Report) -> None:
        pass

    def drop(self, trial: Trial) -> None:
        pass

    def choose(self) -> Trial | None:
        self._waiting = [trial for trial in self._waiting if not trial.has_ended]
        return next((trial for trial in self._waiting if trial.status in ("PENDING", "PAUSED")), None)

    def take_stopped(self) -> list[Trial]:
        return []

    def take_clones(self) -> list[Clone]:
        return []


@dataclass(frozen=True)
class CheckpointRef:
    """Stands for a checkpoint: whose, and of which evaluation."""

    trial: Trial
    report: Report


class TuneTrial:
    """What Ray Tune's schedulers see of a trial."""

    is_saving = False
    temporary_state = SimpleNamespace(saving_to=None)

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.trial_id = trial.name
        self.experiment_tag = trial.name
        self.config = dict(trial.point)
        self.checkpoint: CheckpointRef | None = None
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    @property
    def status(self) -> str:
        return self.trial.status

    def is_finished(self) -> bool:
        return self.trial.has_ended

    def set_config(self, config: Point) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        pass

    def __str__(self) -> str:
        return self.trial_id


class TuneSchedulerAdapter:
    """One of Ray Tune's schedulers."""

    waits_for_decision = True

    def __init__(self, scheduler: Any, is_ordered: bool, seed: int, searcher: Any = None) -> None:
        self.is_ordered = is_ordered
        self._scheduler = scheduler
        self._trials: dict[Trial, TuneTrial] = {}
        self._stopped: list[Trial] = []
        self._random = _RandomState(seed)
        # The parts of Ray Tune's controller that schedulers call.
        self.search_alg = SimpleNamespace(searcher=searcher) if searcher else None

    def add(self, trial: Trial) -> None:
        self._trials[trial] = TuneTrial(trial)
        with self._random.in_force():
            self._scheduler.on_trial_add(self, self._trials[trial])

    def decide(self, trial: Trial, report: Report) -> Decision:
        ray_trial = self._trials[trial]
        with self._random.in_force():
            decision = self._scheduler.on_trial_result(self, ray_trial, _result(report))
        return VERDICTS[decision]

    def complete(self, trial: Trial, report: Report) -> None:
        with self._random.in_force():
            self._scheduler.on_trial_complete(self, self._trials[trial], _result(report))

    def drop(self, trial: Trial) -> None:
        with self._random.in_force():
            self._scheduler.on_trial_error(self, self._trials[trial])

    def choose(self) -> Trial | None:
        with self._random.in_force():
            chosen = self._scheduler.choose_trial_to_run(self)
        return chosen.trial if chosen else None

    def take_stopped(self) -> list[Trial]:
        stopped, self._stopped = self._stopped, []
        return stopped

    def take_clones(self) -> list[Clone]:
        return []

    def get_trials(self) -> list[TuneTrial]:
        return list(self._trials.values())

    def get_live_trials(self) -> list[TuneTrial]:
        return [trial for trial in self._trials.values() if not trial.is_finished()]

    def stop_trial(self, ray_trial: TuneTrial) -> None:
        self._scheduler.on_trial_remove(self, ray_trial)
        self._stopped.append(ray_trial.trial)


class Median(TuneSchedulerAdapter):
    """Ray Tune's median stopping rule, without pauses: where too little is known, a trial goes on."""

    def get_live_trials(self) -> list[TuneTrial]:
        return []


class Population(TuneSchedulerAdapter):
    """Ray Tune's population based training, synchronous: all trials of a population meet at each exchange."""

    def __init__(self, scheduler: Any, seed: int) -> None:
        super().__init__(scheduler, is_ordered=False, seed=seed)
        self._clones: list[Clone] = []

    def decide(self, trial: Trial, report: Report) -> Decision:
        ray_trial = self._trials[trial]
        ray_trial.checkpoint = CheckpointRef(trial, report)
        before = {other: other.config for other in self._trials.values()}
        # At an exchange every trial is paused; the one that is heard last is no exception.
        trial.status = "PAUSED"
        decision = super().decide(trial, report)
        if decision == "continue":
            trial.status = "RUNNING"
        self._clones += [_clone(other) for other, config in before.items() if other.config is not config]
        return decision

    def take_clones(self) -> list[Clone]:
        clones, self._clones = self._clones, []
        return clones


class Populations:
    """A population for each value of what weights cannot be carried across, such as the width."""

    waits_for_decision, is_ordered = True, False

    def __init__(self, make: Callable[[int], Population], mutable: frozenset[str]) -> None:
        self._make, self._mutable = make, mutable
        self._by_key: dict[str, Population] = {}

    def add(self, trial: Trial) -> None:
        key = self._key(trial)
        if key not in self._by_key:
            self._by_key[key] = self._make(len(self._by_key))
        self._by_key[key].add(trial)

    def decide(self, trial: Trial, report: Report) -> Decision:
        return self._of(trial).decide(trial, report)

    def complete(self, trial: Trial, report: Report) -> None:
        self._of(trial).complete(trial, report)

    def drop(self, trial: Trial) -> None:
        self._of(trial).drop(trial)

    def choose(self) -> Trial | None:
        chosen = (population.choose() for population in self._by_key.values())
        return next((trial for trial in chosen if trial is not None and not trial.is_busy), None)

    def take_stopped(self) -> list[Trial]:
        return [trial for population in self._by_key.values() for trial in population.take_stopped()]

    def take_clones(self) -> list[Clone]:
        return [clone for population in self._by_key.values() for clone in population.take_clones()]

    def _of(self, trial: Trial) -> Population:
        return self._by_key[self._key(trial)]

    def _key(self, trial: Trial) -> str:
        fixed = {key: value for key, value in trial.point.items() if key not in self._mutable}
        return repr(sorted(fixed.items(), key=lambda item: item[0]))


def make_scheduler(config: TuneConfig, space: Space, mode: Mode, iterations: int, seed: int) -> Scheduler:
    """Make the scheduler a config names.

    Args:
        iterations: evaluations of the longest trial.
    """
    if config.scheduler == "none":
        return Fifo()  # without the seconds that importing Ray Tune takes
    from ray.tune import schedulers as ray_schedulers

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # HyperBand tells of each bracket it has no use for
    common: dict[str, Any] = {"time_attr": "training_iteration", "metric": "value", "mode": mode}
    match config.scheduler:
        case "asha":
            asha = ray_schedulers.ASHAScheduler(
                max_t=iterations,
                grace_period=max(1, iterations // REDUCTION**2),
                reduction_factor=REDUCTION,
                **common,
            )
            return TuneSchedulerAdapter(asha, is_ordered=True, seed=seed)
        case "median":
            grace = max(1, iterations // REDUCTION**2)
            median = ray_schedulers.MedianStoppingRule(grace_period=grace, **common)
            return Median(median, is_ordered=True, seed=seed)
        case "hyperband":
            band = ray_schedulers.HyperBandScheduler(max_t=iterations, reduction_factor=REDUCTION, **common)
            return TuneSchedulerAdapter(band, is_ordered=False, seed=seed)
        case "pbt":
            mutable = {key: domain for key, domain in space.items() if key.startswith("optim.")}
            every = max(1, iterations // EXCHANGES)
            return Populations(
                lambda number: _population(mutable, every, common, seed + number), frozenset(mutable)
            )
    raise AssertionError(config.scheduler)


def _population(mutable: Mapping[str, Domain], every: int, common: dict[str, Any], seed: int) -> Population:
    from ray.tune import schedulers as ray_schedulers

    scheduler = ray_schedulers.PopulationBasedTraining(
        perturbation_interval=every,
        hyperparam_mutations={key: _mutation(domain) for key, domain in mutable.items()},
        custom_explore_fn=lambda point: _within(point, mutable),
        log_config=False,
        synch=True,
        **common,
    )
    return Population(scheduler, seed)


def _clone(ray_trial: TuneTrial) -> Clone:
    ref = ray_trial.run_metadata.checkpoint_manager._latest_checkpoint_result.checkpoint
    return Clone(ray_trial.trial, ref.trial, ref.report, dict(ray_trial.config))


def _mutation(domain: Domain) -> Any:
    from ray import tune

    match domain:
        case Grid(values) | Choice(values):
            return list(values)
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case Uniform(low, high):
            return tune.uniform(low, high)
        case QUniform(low, high, q):
            return tune.quniform(low, high, q)
        case RandInt(low, high):
            return tune.randint(low, high)
    raise AssertionError(domain)


def _within(point: Point, mutable: Mapping[str, Domain]) -> Point:
    """Keep what was perturbed inside its range, as plain numbers."""
    kept = dict(point)
    for key, domain in mutable.items():
        if isinstance(domain, LogUniform | Uniform | QUniform):
            kept[key] = float(min(max(kept[key], domain.low), domain.high))
        elif isinstance(domain, RandInt):
            kept[key] = int(min(max(kept[key], domain.low), domain.high - 1))
    return kept


def _result(report: Report) -> dict[str, Any]:
    return {"training_iteration": report.iteration, "value": report.value}


class _RandomState:
    """Random states that are in force while a scheduler is called, and nowhere else."""

    def __init__(self, seed: int) -> None:
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed % 2**32).get_state()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        python, numpy = random.getstate(), np.random.get_state()
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()
            random.setstate(python)
            np.random.set_state(numpy)
