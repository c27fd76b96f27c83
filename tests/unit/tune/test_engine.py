"""The engine decides the same whatever runs side by side, and resumes where an earlier attempt stopped."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from shoal.training.loop import Decision
from shoal.tune.engine import Engine, PendingExploit, PlannedSearch, Report, Trial

ITERATIONS = 5


class StopsWorse:
    """Stops a trial that is worse than the best at its iteration so far: decisions depend on the order of reports."""

    is_ordered = True

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.best: dict[int, float] = {}

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)

    def decide(self, trial: Trial, report: Report) -> Decision:
        best = self.best.get(report.iteration, report.value)
        self.best[report.iteration] = min(best, report.value)
        return "stop" if report.value > best else "continue"

    def complete(self, trial: Trial, report: Report) -> None:
        pass

    def drop(self, trial: Trial) -> None:
        pass

    def choose(self) -> Trial | None:
        return next(
            (trial for trial in self.trials if trial.status == "PENDING" and not trial.has_ended), None
        )

    def take_stopped(self) -> list[Trial]:
        return []

    def take_exploits(self) -> list[PendingExploit]:
        return []


class RunsAll(StopsWorse):
    """Runs every trial to its end."""

    is_ordered = False

    def decide(self, trial: Trial, report: Report) -> Decision:
        return "continue"


class RecordingSearch:
    """Suggests points that list the points of known results."""

    learns = True

    def __init__(self, total: int) -> None:
        self.total = total
        self.reported: list[tuple[int, tuple[float | None, ...]]] = []

    def suggest(self, number: int) -> dict[str, object]:
        return {"number": number, "reported": [number for number, _ in self.reported]}

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        self.reported.append((number, tuple(values)))


@dataclass
class World:
    """Trials that run side by side, at random speeds."""

    engine: Engine
    slots: int
    rng: random.Random
    fails: frozenset[int] = frozenset()
    running: dict[Trial, int] = field(default_factory=dict)
    waiting: set[Trial] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    reports: dict[int, list[Report]] = field(default_factory=dict)
    steps_run: int = 0

    def run(self, most: int = 100_000) -> None:
        while not self.engine.has_ended and self.steps_run < most:
            while len(self.running) < self.slots and (trial := self.engine.choose()):
                self.running[trial] = trial.iteration
                self.begun.add(trial.name)
            for trial, decision in self.engine.decisions():
                self.waiting.discard(trial)
                if decision == "stop":
                    self.engine.stop(trial)
                    del self.running[trial]
            free = [trial for trial in self.running if trial not in self.waiting]
            if free:
                self.step(self.rng.choice(free))

    def step(self, trial: Trial) -> None:
        self.steps_run += 1
        self.running[trial] += 1
        iteration = self.running[trial]
        if trial.number in self.fails and iteration == 2:
            del self.running[trial]
            self.engine.fail(trial, "infeasible")
            return
        is_last = iteration == ITERATIONS
        report = Report(iteration, 10 * iteration, value(trial.number, iteration))
        self.reports.setdefault(trial.number, []).append(report)
        self.engine.report(trial, report, is_last)
        if is_last:
            del self.running[trial]
        else:
            self.waiting.add(trial)


def value(number: int, iteration: int) -> float:
    return random.Random(number).random() + random.Random(100 * number + iteration).random() / 5


def outcomes(engine: Engine) -> list[tuple[str | None, list[Report]]]:
    """How each trial ended, and its last report."""
    return [(trial.outcome, trial.reports) for trial in engine.trials]


def sweep(slots: int, seed: int, scheduler: StopsWorse, fails: frozenset[int] = frozenset()) -> World:
    engine = Engine(PlannedSearch([{"x": number} for number in range(12)]), scheduler)
    world = World(engine, slots, random.Random(seed), fails)
    world.run()
    assert engine.has_ended
    return world


@pytest.mark.parametrize("fails", [frozenset(), frozenset({0, 3})])
def test_decisions_are_those_of_one_trial_at_a_time_however_many_run_and_whichever_is_faster(fails):
    one_by_one = outcomes(sweep(1, 0, StopsWorse(), fails).engine)
    assert {"finished", "stopped"} <= {outcome for outcome, _ in one_by_one}
    for seed in range(20):
        for slots in (2, 3, 5):
            assert outcomes(sweep(slots, seed, StopsWorse(), fails).engine) == one_by_one


def test_decisions_in_the_order_of_arrival_would_differ():
    """The test above can fail: without the engine's order it would."""

    class Unordered(StopsWorse):
        is_ordered = False

    one_by_one = outcomes(sweep(1, 0, Unordered()).engine)
    assert any(outcomes(sweep(3, seed, Unordered()).engine) != one_by_one for seed in range(20))


def test_a_search_that_learns_knows_the_same_results_at_each_point_however_many_trials_run():
    def points(slots: int, seed: int) -> list[dict[str, object]]:
        engine = Engine(RecordingSearch(20), RunsAll(), lag=4)
        World(engine, slots, random.Random(seed)).run()
        return [trial.point for trial in engine.trials]

    one_by_one = points(1, 0)
    assert one_by_one[4 + 3] == {"number": 4 + 3, "reported": [0, 1, 2, 3]}
    assert all(points(slots, seed) == one_by_one for slots in (2, 4, 8, 16) for seed in range(5))


def test_repeats_of_a_point_are_separate_trials_and_their_results_are_reported_together():
    search = RecordingSearch(3)
    engine = Engine(search, RunsAll(), repeat=2, lag=1)
    World(engine, 2, random.Random(0)).run()
    assert [(trial.point_number, trial.repeat) for trial in engine.trials] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert [number for number, _ in search.reported] == [0, 1]
    assert search.reported[0][1] == (value(0, ITERATIONS), value(1, ITERATIONS))


def test_reports_of_an_earlier_attempt_are_decided_on_again_but_not_trained_again():
    twin = sweep(2, 0, StopsWorse())
    half = 6

    def restore(trial: Trial) -> None:
        if trial.number < half:
            trial.recorded = list(twin.reports[trial.number])
            trial.recorded_outcome = twin.engine.trials[trial.number].outcome

    engine = Engine(PlannedSearch([{"x": number} for number in range(12)]), StopsWorse(), restore=restore)
    ran: list[int] = []
    while not engine.has_ended:
        trial = engine.choose()
        if trial is None:
            break
        while not trial.has_ended:
            if trial.recorded:
                report = trial.recorded.pop(0)
                is_last = not trial.recorded and trial.recorded_outcome == "finished"
            else:
                iteration = trial.iteration + 1
                ran.append(trial.number)
                report = Report(iteration, 10 * iteration, value(trial.number, iteration))
                is_last = iteration == ITERATIONS
            engine.report(trial, report, is_last)
            for which, decision in engine.decisions():
                if decision == "stop":
                    engine.stop(which)
    assert outcomes(engine) == outcomes(twin.engine)
    assert min(ran) >= half


def test_a_trial_whose_process_was_lost_is_chosen_again_and_waited_for():
    engine = Engine(PlannedSearch([{"x": 0}, {"x": 1}]), StopsWorse())
    first, second = engine.choose(), engine.choose()
    assert first
    assert second
    engine.report(second, Report(1, 10, 0.5))
    engine.release(first)
    assert engine.decisions() == []
    assert engine.choose() is first
    engine.report(first, Report(1, 10, 0.1))
    assert engine.decisions() == [(first, "continue"), (second, "stop")]


def test_an_impatient_engine_does_not_wait_for_a_trial_that_no_process_runs():
    engine = Engine(PlannedSearch([{"x": 0}, {"x": 1}]), StopsWorse())
    first, second = engine.choose(), engine.choose()
    assert first
    assert second
    engine.report(second, Report(1, 10, 0.5))
    engine.release(first)
    engine.is_impatient = True
    assert engine.decisions() == [(second, "continue")]


def test_closing_ends_the_trials_that_do_not_run_and_asks_for_no_more_points():
    engine = Engine(PlannedSearch([{"x": 0}, {"x": 1}, {"x": 2}]), RunsAll())
    running = engine.choose()
    engine.close("killed")
    assert engine.choose() is None
    assert [trial.outcome for trial in engine.trials] == [None, "killed", "killed"]
    assert running is not None
    engine.fail(running, "killed")
    assert engine.has_ended


class Exploits(RunsAll):
    """Has the first trial exploit the second one when the second one reports."""

    def decide(self, trial: Trial, report: Report) -> Decision:
        self.pending = [PendingExploit(self.trials[0], trial, report, {"x": 1})]
        return "pause"

    def take_exploits(self) -> list[PendingExploit]:
        taken, self.pending = getattr(self, "pending", []), []
        return taken


def test_nothing_starts_while_an_exploit_waits_for_a_busy_trial():
    engine = Engine(PlannedSearch([{"x": 0}, {"x": 1}, {"x": 2}]), Exploits())
    first, second = engine.choose(), engine.choose()
    assert first
    assert second
    engine.report(second, Report(1, 10, 0.5))
    assert engine.decisions() == [(second, "pause")]
    assert engine.choose() is None
    assert engine.take_exploits() == []
    engine.release(first)
    engine.release(second)
    assert len(engine.take_exploits()) == 1
    assert engine.choose() is first


DRAWN_TWICE = [{"x": 0}, {"x": 1}, {"x": 0}, {"x": 2}, {"x": 1.0}, {"x": 3}]


@pytest.mark.parametrize("scheduler", [RunsAll, StopsWorse])
def test_a_point_that_is_drawn_twice_is_trained_once_and_its_result_is_taken_again(scheduler):
    for slots, seed in ((1, 0), (3, 1), (3, 2)):
        engine = Engine(PlannedSearch(DRAWN_TWICE), scheduler())
        world = World(engine, slots, random.Random(seed))
        world.run()
        assert engine.has_ended
        assert {trial.name for trial in engine.take_reused()} == {"t0002", "t0004"}
        assert world.begun == {"t0000", "t0001", "t0003", "t0005"}
        for number, source in ((2, 0), (4, 1)):
            trial, other = engine.trials[number], engine.trials[source]
            assert (trial.outcome, trial.same_as, trial.result) == ("reused", other, other.value)


def test_different_seeds_of_a_point_are_different_trials_and_each_repeat_takes_the_result_of_its_own_seed():
    engine = Engine(PlannedSearch([{"x": 0}, {"x": 0}]), RunsAll(), repeat=2)
    World(engine, 2, random.Random(0)).run()
    assert [trial.outcome for trial in engine.trials] == ["finished", "finished", "reused", "reused"]
    assert [trial.same_as for trial in engine.trials[2:]] == engine.trials[:2]


def test_a_search_that_learns_receives_the_result_of_a_point_that_it_repeats():
    class Repeats(RecordingSearch):
        def suggest(self, number: int) -> dict[str, object]:
            return {"x": number % 2}

    search = Repeats(5)
    World(Engine(search, RunsAll(), lag=1), 1, random.Random(0)).run()
    assert search.reported == [(number, (value(number % 2, ITERATIONS),)) for number in range(4)]


def test_a_trial_that_was_begun_before_points_were_reused_goes_on_and_one_that_was_killed_is_waited_for():
    def restore(trial: Trial) -> None:
        trial.was_begun = trial.number == 2

    engine = Engine(PlannedSearch(DRAWN_TWICE[:3]), RunsAll(), restore=restore)
    World(engine, 1, random.Random(0)).run()
    assert [trial.outcome for trial in engine.trials] == ["finished"] * 3
    engine = Engine(PlannedSearch(DRAWN_TWICE[:3]), RunsAll())
    first = engine.choose()
    assert first
    engine.fail(first, "killed")
    assert engine.trials[2].outcome is None
    engine = Engine(PlannedSearch(DRAWN_TWICE[:3]), RunsAll())
    first = engine.choose()
    assert first
    engine.fail(first, "infeasible")
    assert (engine.trials[2].outcome, engine.trials[2].result) == ("reused", None)


def test_population_based_training_trains_two_trials_that_begin_at_one_point():
    engine = Engine(PlannedSearch([{"x": 0}, {"x": 0}]), RunsAll(), reuse=False)
    World(engine, 2, random.Random(0)).run()
    assert [trial.outcome for trial in engine.trials] == ["finished", "finished"]
