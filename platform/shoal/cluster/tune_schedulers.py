"""The scheduler that a config names, and Ray Tune's own for the sweep engine: those that pause trials.

HyperBand and population based training are Ray Tune's own classes, called as Ray Tune's controller calls them; what
they ask of a controller and its trials is answered from the engine's. Time is counted in evaluations
(`training_iteration`). Their random choices use a random state of their own, which depends on the sweep's seed alone.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from shoal.cluster.ray_private import exploited_checkpoint
from shoal.training.loop import Decision
from shoal.tune.config import TuneConfig
from shoal.tune.engine import PendingExploit, Report, Scheduler, Trial
from shoal.tune.schedulers import Asha, Fifo, MedianStopping
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

# ASHA first decides after a ninth of a trial's evaluations, then after three times as many: three rungs, and a third of
# the trials goes on from each.
REDUCTION_FACTOR = 3
# How often a trial of population based training may exploit another.
EXPLOITS_PER_TRIAL = 5

DECISIONS: dict[str, Decision] = {"CONTINUE": "continue", "NOOP": "pause", "STOP": "stop", "PAUSE": "pause"}


@dataclass(frozen=True)
class CheckpointRef:
    """The checkpoint of a trial at an evaluation, where Ray Tune keeps a checkpoint."""

    trial: Trial
    report: Report


class TuneTrial:
    """A trial as Ray Tune's schedulers see it."""

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
    """One of Ray Tune's schedulers, as the engine calls it; to the scheduler it is Ray Tune's controller."""

    is_ordered = False  # the trials that it compares are paused until all of them have reported

    def __init__(self, scheduler: Any, seed: int) -> None:
        self._scheduler = scheduler
        self._trials: dict[Trial, TuneTrial] = {}
        self._stopped: list[Trial] = []
        self._random = _RandomStates(seed)
        self.search_alg = None

    def add(self, trial: Trial) -> None:
        self._trials[trial] = TuneTrial(trial)
        with self._random.in_force():
            self._scheduler.on_trial_add(self, self._trials[trial])

    def decide(self, trial: Trial, report: Report) -> Decision:
        ray_trial = self._trials[trial]
        with self._random.in_force():
            decision = self._scheduler.on_trial_result(self, ray_trial, _result(report))
        return DECISIONS[decision]

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

    def take_exploits(self) -> list[PendingExploit]:
        return []

    def get_trials(self) -> list[TuneTrial]:
        return list(self._trials.values())

    def get_live_trials(self) -> list[TuneTrial]:
        return [trial for trial in self._trials.values() if not trial.is_finished()]

    def stop_trial(self, ray_trial: TuneTrial) -> None:
        self._scheduler.on_trial_remove(self, ray_trial)
        self._stopped.append(ray_trial.trial)


class Population(TuneSchedulerAdapter):
    """Ray Tune's population based training, synchronous: at each perturbation interval all trials are paused."""

    def __init__(self, scheduler: Any, seed: int) -> None:
        super().__init__(scheduler, seed)
        self._exploits: list[PendingExploit] = []

    def decide(self, trial: Trial, report: Report) -> Decision:
        ray_trial = self._trials[trial]
        ray_trial.checkpoint = CheckpointRef(trial, report)
        before = {other: other.config for other in self._trials.values()}
        # Ray Tune decides when all trials are paused; the one that reports last must count as paused too.
        trial.status = "PAUSED"
        decision = super().decide(trial, report)
        if decision == "continue":
            trial.status = "RUNNING"
        self._exploits += [
            _pending_exploit(other) for other, config in before.items() if other.config is not config
        ]
        return decision

    def take_exploits(self) -> list[PendingExploit]:
        exploits, self._exploits = self._exploits, []
        return exploits


class Populations:
    """A population for each combination of the keys that weights cannot be copied across, such as the width."""

    is_ordered = False

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

    def take_exploits(self) -> list[PendingExploit]:
        return [decision for population in self._by_key.values() for decision in population.take_exploits()]

    def _of(self, trial: Trial) -> Population:
        return self._by_key[self._key(trial)]

    def _key(self, trial: Trial) -> str:
        fixed = {key: value for key, value in trial.point.items() if key not in self._mutable}
        return repr(sorted(fixed.items(), key=lambda item: item[0]))


def make_scheduler(config: TuneConfig, space: Space, mode: Mode, iterations: int, seed: int) -> Scheduler:
    """Make the scheduler that a config names.

    Args:
        iterations: number of evaluations of the longest trial.
    """
    grace = max(1, iterations // REDUCTION_FACTOR**2)
    match config.scheduler:
        case "none":
            return Fifo()
        case "asha":
            return Asha(mode, grace, iterations, REDUCTION_FACTOR)
        case "median":
            return MedianStopping(mode, grace)
    from ray.tune import schedulers as ray_schedulers

    # HyperBand warns of each bracket that it does not fill.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    common: dict[str, Any] = {"time_attr": "training_iteration", "metric": "value", "mode": mode}
    match config.scheduler:
        case "hyperband":
            band = ray_schedulers.HyperBandScheduler(
                max_t=iterations, reduction_factor=REDUCTION_FACTOR, **common
            )
            return TuneSchedulerAdapter(band, seed)
        case "pbt":
            mutable = {key: domain for key, domain in space.items() if key.startswith("optim.")}
            every = max(1, iterations // EXPLOITS_PER_TRIAL)
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


def _pending_exploit(ray_trial: TuneTrial) -> PendingExploit:
    ref = exploited_checkpoint(ray_trial)
    return PendingExploit(ray_trial.trial, ref.trial, ref.report, dict(ray_trial.config))


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
    """Clip perturbed values to their ranges, as plain numbers."""
    kept = dict(point)
    for key, domain in mutable.items():
        if isinstance(domain, LogUniform | Uniform | QUniform):
            kept[key] = float(min(max(kept[key], domain.low), domain.high))
        elif isinstance(domain, RandInt):
            kept[key] = int(min(max(kept[key], domain.low), domain.high - 1))
    return kept


def _result(report: Report) -> dict[str, Any]:
    return {"training_iteration": report.iteration, "value": report.value}


class _RandomStates:
    """Random states that are in force while a scheduler is called, and only then."""

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
