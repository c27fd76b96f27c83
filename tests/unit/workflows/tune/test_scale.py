"""What an event of a sweep takes does not grow with the number of its trials, and data and memory are freed."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from benchmarks.simulated_sweep import SimulatedDatasets, Spent, simulate

from shoal.devices import CPU
from shoal.storage.records import TrialResult
from shoal.tune.config import load_sweep
from shoal.tune.trials import best
from shoal.tune.validate import validate_sweep

REPORTS, FEW, MANY = 3, 10, 40
SOURCE = str(Path(__file__).resolve().parents[4] / "platform" / "shoal")


class Counted:
    """Counts the lines of Shoal that run: operations, which a busy machine does not change."""

    def __init__(self) -> None:
        self.lines = 0

    def __enter__(self) -> "Counted":
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(SOURCE) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.lines += event == "line"
        return self._line


def counted(folder: Path, trials: int, *settings: str) -> tuple[Spent, float]:
    """Run a simulated sweep; return it, and the lines of Shoal that a trial took."""
    folder.mkdir()
    with Counted() as count:
        spent = simulate(folder, trials, REPORTS, *settings)
    return spent, count.lines / trials


@pytest.mark.parametrize("scheduler", ["none", pytest.param("asha", marks=pytest.mark.long), "median"])
def test_a_trial_of_a_large_sweep_takes_the_work_of_one_of_a_small_sweep(
    tmp_path: Path, scheduler: str
) -> None:
    _, few = counted(tmp_path / "few", FEW, f"tune.scheduler={scheduler}")
    spent, many = counted(tmp_path / "many", MANY, f"tune.scheduler={scheduler}")
    assert many < 1.25 * few
    assert spent.state.engine
    assert spent.state.engine.has_ended
    rows = spent.state.rows()
    assert len(rows) == MANY
    assert {row.status for row in rows} <= {"finished", "stopped"}
    for row in rows[:10]:
        record = spent.state.trial_folder(spent.state.trials[row.number]).load(TrialResult)
        assert record
        assert (record.outcome, record.value) == (row.status, row.metric)
        assert row.curve[-1][1] == row.metric
    assert spent.state.ranking.best
    assert spent.state.ranking.best.number == best(rows, "min").number
    assert not spent.state.progress, "what a trial needs while it runs is dropped when it ends"


def test_data_that_no_trial_needs_any_more_are_freed(tmp_path: Path) -> None:
    config = load_sweep(None, ["data.pad=0,1,2", "optim.lr=0.1,0.2"])
    datasets = SimulatedDatasets(config)
    points = [{"data.pad": pad, "optim.lr": lr} for pad in (0, 1, 2) for lr in (0.1, 0.2)]
    for point in points:
        datasets.expect(point)
    datasets.put(validate_sweep(config, lambda scale, spare_cpus: CPU).base)
    for number, point in enumerate(points):
        datasets.get(config.trial(point))
        assert len(datasets) == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2}[number]
        datasets.release(point, best=points[0], knows_all=True)
    assert len(datasets) == 1, "the best trial's, whose model is packaged"
    assert datasets.get(config.trial(points[0])).plan.config.data.pad == 0


@pytest.mark.parametrize("scheduler", ["none", "asha", "median", "hyperband"])
def test_each_point_is_trained_once_under_any_scheduler_that_stops_trials(
    tmp_path: Path, scheduler: str
) -> None:
    settings = (f"tune.scheduler={scheduler}", "optim.lr=0.1", "model.width=randint(16,24)")
    state = simulate(tmp_path, 24, 9, *settings).state
    rows = {row.name: row for row in state.rows()}
    assert len(rows) == 24
    trained = [row for row in rows.values() if row.same_as is None]
    assert len(trained) == len({row.params["model.width"] for row in trained}) < 9
    for row in rows.values():
        if row.same_as:
            assert (row.status, row.metric) == ("reused", rows[row.same_as].metric)
            record = state.trial_folder(state.trials[row.number]).load(TrialResult)
            assert record
            assert (record.outcome, record.same_as, record.value) == ("reused", row.same_as, row.metric)


@pytest.mark.long
def test_optuna_proposes_the_same_points_whatever_runs_side_by_side(tmp_path: Path) -> None:
    settings = ("tune.search=optuna", "tune.scheduler=asha", "model.width=16,32,64")
    one_by_one = simulate(tmp_path / "1", 30, REPORTS, *settings, slots=1).state
    expected = [(row.params, row.status, row.curve) for row in one_by_one.rows()]
    assert {"finished", "stopped"} <= {status for _, status, _ in expected}
    for slots in (2, 5, 16):
        state = simulate(tmp_path / str(slots), 30, REPORTS, *settings, slots=slots).state
        assert [(row.params, row.status, row.curve) for row in state.rows()] == expected
    other = simulate(tmp_path / "lag", 30, REPORTS, *settings, "tune.lag=2", slots=4).state
    assert [row.params for row in other.rows()] != [params for params, *_ in expected]
