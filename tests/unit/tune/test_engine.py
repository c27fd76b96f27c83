"""The engine decides the same whatever runs side by side, and goes on where an earlier attempt left off."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from shoal.tune.engine import LAG, Clone, Decision, Engine, Planned, Report, Trial

ITERATIONS = 5


class Rival:
    """Stops a trial that is worse than the best heard at its iteration so far: it depends on who was heard before."""

    waits_for_decision = is_ordered = True

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.best: dict[int, float] = {}
        self.heard: list[tuple[int, int]] = []

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)

    def decide(self, trial: Trial, report: Report) -> Decision:
        self.heard.append((trial.number, report.iteration))
        best = self.best.get(report.iteration, report.value)
        self.best[report.iteration] = min(best, report.value)
        return "stop" if report.value > best else "continue"

    def complete(self, trial: Trial, report: Report) -> None:
        self.heard.append((trial.number, report.iteration))

    def drop(self, trial: Trial) -> None:
        pass

    def choose(self) -> Trial | None:
        return next(
            (trial for trial in self.trials if trial.status == "PENDING" and not trial.has_ended), None
        )

    def take_stopped(self) -> list[Trial]:
        return []

    def take_clones(self) -> list[Clone]:
        return []


class Greedy(Rival):
    """Runs every trial to its end."""

    waits_for_decision = is_ordered = False

    def decide(self, trial: Trial, report: Report) -> Decision:
        return "continue"


class Learner:
    """Suggests a point that says what it was told of before."""

    learns = True

    def __init__(self, total: int) -> None:
        self.total = total
        self.told: list[tuple[int, tuple[float | None, ...]]] = []

    def suggest(self, number: int) -> dict[str, object]:
        return {"told": [number for number, _ in self.told]}

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        self.told.append((number, tuple(values)))


@dataclass
class World:
    """Trials that run side by side, each as fast as chance will have it."""

    engine: Engine
    slots: int
    chance: random.Random
    fails: frozenset[int] = frozenset()
    running: dict[Trial, int] = field(default_factory=dict)
    waiting: set[Trial] = field(default_factory=set)
    steps_run: int = 0

    def run(self, most: int = 100_000) -> None:
        while not self.engine.has_ended and self.steps_run < most:
            while len(self.running) < self.slots and (trial := self.engine.choose()):
                self.running[trial] = trial.iteration
            for trial, verdict in self.engine.decisions():
                self.waiting.discard(trial)
                if verdict == "stop":
                    self.engine.stop(trial)
                    del self.running[trial]
            free = [trial for trial in self.running if trial not in self.waiting]
            if free:
                self.step(self.chance.choice(free))

    def step(self, trial: Trial) -> None:
        self.steps_run += 1
        self.running[trial] += 1
        iteration = self.running[trial]
        if trial.number in self.fails and iteration == 2:
            del self.running[trial]
            self.engine.fail(trial, "infeasible")
            return
        is_last = iteration == ITERATIONS
        self.engine.report(trial, Report(iteration, 10 * iteration, value(trial.number, iteration)), is_last)
        if is_last:
            del self.running[trial]
        else:
            self.waiting.add(trial)


def value(number: int, iteration: int) -> float:
    return random.Random(number).random() + random.Random(100 * number + iteration).random() / 5


def outcomes(engine: Engine) -> list[tuple[str | None, list[Report]]]:
    return [(trial.outcome, trial.reports) for trial in engine.trials]


def sweep(slots: int, seed: int, scheduler: Rival, fails: frozenset[int] = frozenset()) -> Engine:
    engine = Engine(Planned([{"x": number} for number in range(12)]), scheduler)
    World(engine, slots, random.Random(seed), fails).run()
    assert engine.has_ended
    return engine


@pytest.mark.parametrize("fails", [frozenset(), frozenset({0, 3})])
def test_verdicts_are_those_of_one_trial_at_a_time_however_many_run_and_whichever_is_faster(fails):
    alone = outcomes(sweep(1, 0, Rival(), fails))
    assert {"finished", "stopped"} <= {outcome for outcome, _ in alone}
    for seed in range(20):
        for slots in (2, 3, 5):
            assert outcomes(sweep(slots, seed, Rival(), fails)) == alone


def test_without_the_order_they_would_not_be():
    """What the test above guards against can happen: the check is one that can fail."""

    class Unordered(Rival):
        is_ordered = False

    alone = outcomes(sweep(1, 0, Unordered()))
    assert any(outcomes(sweep(3, seed, Unordered())) != alone for seed in range(20))


def test_a_searcher_that_learns_is_told_the_same_before_each_point_however_many_run():
    def points(slots: int, seed: int) -> list[dict[str, object]]:
        engine = Engine(Learner(20), Greedy())
        World(engine, slots, random.Random(seed)).run()
        return [trial.point for trial in engine.trials]

    alone = points(1, 0)
    assert alone[LAG + 3] == {"told": [0, 1, 2, 3]}
    assert all(points(slots, seed) == alone for slots in (2, 4, LAG) for seed in range(5))


def test_repeats_of_a_point_are_trials_of_their_own_and_told_together():
    learner = Learner(3)
    engine = Engine(learner, Greedy(), repeat=2, lag=1)
    World(engine, 2, random.Random(0)).run()
    assert [(trial.point_number, trial.repeat) for trial in engine.trials] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert [number for number, _ in learner.told] == [0, 1]
    assert learner.told[0][1] == (value(0, ITERATIONS), value(1, ITERATIONS))


def test_what_an_earlier_attempt_recorded_is_judged_again_but_not_run_again():
    twin = sweep(2, 0, Rival())
    half = 6

    def restore(trial: Trial) -> None:
        earlier = twin.trials[trial.number]
        if trial.number < half:
            trial.recorded = deque(earlier.reports)
            trial.recorded_end = earlier.outcome

    engine = Engine(Planned([{"x": number} for number in range(12)]), Rival(), restore=restore)
    ran: list[int] = []
    while not engine.has_ended:
        trial = engine.choose()
        if trial is None:
            break
        while not trial.has_ended:
            if trial.recorded:
                report = trial.recorded.popleft()
                is_last = not trial.recorded and trial.recorded_end == "finished"
            else:
                iteration = trial.iteration + 1
                ran.append(trial.number)
                report = Report(iteration, 10 * iteration, value(trial.number, iteration))
                is_last = iteration == ITERATIONS
            engine.report(trial, report, is_last)
            for which, verdict in engine.decisions():
                if verdict == "stop":
                    engine.stop(which)
    assert outcomes(engine) == outcomes(twin)
    assert min(ran) >= half


def test_a_trial_whose_process_was_lost_is_chosen_again_and_waited_for():
    engine = Engine(Planned([{}, {}]), Rival())
    first, second = engine.choose(), engine.choose()
    assert first
    assert second
    engine.report(second, Report(1, 10, 0.5))
    engine.release(first)
    assert engine.decisions() == []
    assert engine.choose() is first
    engine.report(first, Report(1, 10, 0.1))
    assert engine.decisions() == [(first, "continue"), (second, "stop")]


def test_a_trial_that_nobody_can_run_is_not_waited_for_for_ever():
    engine = Engine(Planned([{}, {}]), Rival())
    first, second = engine.choose(), engine.choose()
    assert first
    assert second
    engine.report(second, Report(1, 10, 0.5))
    engine.release(first)
    engine.is_impatient = True
    assert engine.decisions() == [(second, "continue")]


def test_closing_ends_what_is_not_at_work_and_asks_for_no_more():
    engine = Engine(Planned([{}, {}, {}]), Greedy())
    running = engine.choose()
    engine.close("killed")
    assert engine.choose() is None
    assert [trial.outcome for trial in engine.trials] == [None, "killed", "killed"]
    assert running is not None
    engine.fail(running, "killed")
    assert engine.has_ended


def test_nothing_starts_while_an_exchange_of_weights_waits_for_a_trial_at_work():
    engine = Engine(Planned([{}, {}, {}]), Greedy())
    first, second = engine.choose(), engine.choose()
    assert first
    assert second
    engine.clones = [Clone(first, second, Report(1, 10, 0.5), {"x": 1})]
    assert engine.choose() is None
    assert engine.take_clones() == []
    engine.release(first)
    engine.release(second)
    assert len(engine.take_clones()) == 1
    assert engine.choose() is first
