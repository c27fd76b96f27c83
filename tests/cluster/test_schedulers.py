"""Ray Tune's schedulers under the sweep engine: each does its work, and decides the same whatever runs side by side."""

import random
from dataclasses import dataclass, field

import pytest

from shoal.cluster.tune_schedulers import make_scheduler
from shoal.tune.config import TuneConfig
from shoal.tune.engine import Engine, PendingExploit, Report, Trial
from shoal.tune.search import make_search
from shoal.tune.space.domains import Space
from shoal.tune.space.parsing import parse_block

pytestmark = pytest.mark.long

ITERATIONS = 9
SPACE = parse_block(
    {"model.width": [32, 64], "optim.lr": "loguniform(1e-4, 1e-1)", "optim.name": ["adam", "sgd"]}
)


@dataclass
class World:
    """A sweep in which a trial's loss falls faster the nearer its learning rate is to 0.01; exploits copy the loss."""

    config: TuneConfig
    slots: int
    rng: random.Random
    space: Space = field(default_factory=lambda: SPACE)
    exploits: list[PendingExploit] = field(default_factory=list)

    def run(self) -> Engine:
        scheduler = make_scheduler(self.config, self.space, "min", ITERATIONS, seed=0)
        engine = Engine(make_search(self.config, self.space, "min", 0), scheduler, self.config.repeat)
        loss: dict[Trial, float] = {}
        at: dict[Trial, int] = {}
        running: list[Trial] = []
        waiting: list[Trial] = []
        idle_rounds = 0
        while not engine.has_ended:
            for pending in engine.take_exploits():
                loss[pending.trial] = loss[pending.source]
                pending.trial.point = pending.point
                self.exploits.append(pending)
            while len(running) < self.slots and (trial := engine.choose()):
                running.append(trial)
            for trial, decision in engine.decisions():
                waiting.remove(trial)
                if decision != "continue":
                    running.remove(trial)
                    (engine.stop if decision == "stop" else engine.release)(trial)
            free = [trial for trial in running if trial not in waiting]
            if not free:
                idle_rounds += 1
                assert idle_rounds < 1000, "nothing moves"
                continue
            trial = self.rng.choice(free)
            at[trial] = at.get(trial, 0) + 1
            gap = abs(trial.point["optim.lr"] - 0.01) + (trial.point["model.width"] == 32) * 1e-3
            loss[trial] = loss.get(trial, 1.0) * (0.5 + min(0.4, 10 * gap))
            is_last = at[trial] == ITERATIONS
            engine.report(trial, Report(at[trial], at[trial], loss[trial]), is_last)
            (running.remove if is_last else waiting.append)(trial)
        return engine


def outcomes(engine: Engine) -> list[tuple[str | None, dict, list[Report]]]:
    return [(trial.outcome, trial.point, trial.reports) for trial in engine.trials]


@pytest.mark.parametrize("name", ["none", "asha", "median", "hyperband", "pbt"])
def test_a_sweep_is_the_same_with_one_trial_at_a_time_and_with_several_at_any_speed(name):
    config = TuneConfig(scheduler=name, num_samples=3)
    one_by_one = outcomes(World(config, 1, random.Random(0)).run())
    for slots, seed in ((1, 1), (2, 2), (4, 3), (4, 4)):
        assert outcomes(World(config, slots, random.Random(seed)).run()) == one_by_one


@pytest.mark.parametrize(("name", "most"), [("asha", 0.75), ("hyperband", 0.75), ("median", 0.95)])
def test_worse_trials_are_stopped_early_and_a_good_one_finishes(name, most):
    engine = World(TuneConfig(scheduler=name, num_samples=6), 3, random.Random(0)).run()
    assert {"finished", "stopped"} == {trial.outcome for trial in engine.trials}
    evaluations = sum(trial.iteration for trial in engine.trials)
    assert evaluations < most * ITERATIONS * len(engine.trials)
    complete = World(TuneConfig(num_samples=6), 3, random.Random(0)).run()
    best = min(complete.trials, key=lambda trial: trial.value or 1.0)
    survivors = [trial for trial in engine.trials if trial.outcome == "finished"]
    assert min(trial.value or 1.0 for trial in survivors) <= 3 * (best.value or 1.0)


def test_population_based_training_exploits_trials_of_the_same_width_and_keeps_points_within_their_ranges():
    world = World(TuneConfig(scheduler="pbt", num_samples=4), 3, random.Random(0))
    engine = world.run()
    assert world.exploits
    for pending in world.exploits:
        assert pending.trial.point["model.width"] == pending.source.point["model.width"]
        assert 1e-4 <= pending.point["optim.lr"] <= 1e-1
        assert pending.point["optim.name"] in ("adam", "sgd")
        assert pending.trial.number != pending.source.number
    assert all(trial.outcome == "finished" and trial.iteration == ITERATIONS for trial in engine.trials)
    plain = World(TuneConfig(num_samples=4), 3, random.Random(0)).run()
    assert sum(trial.value or 1.0 for trial in engine.trials) < sum(
        trial.value or 1.0 for trial in plain.trials
    )


def test_optuna_under_asha_suggests_the_same_points_however_many_run():
    config = TuneConfig(scheduler="asha", search="optuna", num_samples=20)
    one_by_one = outcomes(World(config, 1, random.Random(0)).run())
    assert outcomes(World(config, 4, random.Random(1)).run()) == one_by_one
