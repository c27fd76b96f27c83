"""Points are a function of space, seed and number alone; more samples do not change earlier ones."""

import pytest

from shoal.errors import ConfigError
from shoal.tune.config import TuneConfig
from shoal.tune.search import OptunaSearch, make_search, planned_points
from shoal.tune.space.parsing import parse_block

SPACE = parse_block({"model.width": [32, 64], "optim.lr": "loguniform(1e-4, 1e-1)"})


def test_a_draw_is_tried_at_every_point_of_the_grid():
    points = planned_points(TuneConfig(num_samples=3), SPACE, seed=0)
    assert [point["model.width"] for point in points] == [32, 64] * 3
    assert [points[2 * n]["optim.lr"] for n in range(3)] == [points[2 * n + 1]["optim.lr"] for n in range(3)]
    assert len({point["optim.lr"] for point in points}) == 3


def test_by_default_there_are_about_sixteen_trials_and_all_of_a_grid():
    assert len(planned_points(TuneConfig(), SPACE, seed=0)) == 16
    assert len(planned_points(TuneConfig(), parse_block({"seed": [1, 2, 3]}), seed=0)) == 3


def test_more_samples_begin_with_the_same_points_and_another_seed_gives_others():
    few = planned_points(TuneConfig(num_samples=2), SPACE, seed=0)
    assert planned_points(TuneConfig(num_samples=5), SPACE, seed=0)[:4] == few
    assert planned_points(TuneConfig(num_samples=2), SPACE, seed=1) != few


def test_given_points_come_first_and_their_missing_keys_are_drawn():
    config = TuneConfig(num_samples=1, points=[{"optim.lr": 0.5}])
    points = planned_points(config, SPACE, seed=0)
    assert len(points) == 3
    assert points[0]["optim.lr"] == 0.5
    assert points[0]["model.width"] in (32, 64)


def test_the_values_of_points_are_those_of_the_config_and_a_given_point_of_the_grid_is_not_tried_twice():
    space = parse_block({"model.width": "quniform(32, 96, 32)", "optim.weight_decay": [0, 1]})
    search = make_search(TuneConfig(num_samples=2), space, "min", 0)
    points = [search.suggest(number) for number in range(search.total)]
    assert {type(point["model.width"]) for point in points} == {int}
    assert {type(point["optim.weight_decay"]) for point in points} == {float}
    grid = parse_block({"model.width": [32, 64], "optim.lr": [1, 2]})
    config = TuneConfig(points=[{"model.width": 32.0, "optim.lr": 2.0}])
    assert make_search(config, grid, "min", 0).total == 4


def test_a_grid_search_refuses_random_ranges_and_repeated_grids():
    with pytest.raises(ConfigError, match=r"tune.search=random"):
        planned_points(TuneConfig(search="grid"), SPACE, seed=0)
    with pytest.raises(ConfigError, match=r"tune.repeat"):
        planned_points(TuneConfig(num_samples=2), parse_block({"seed": [1, 2]}), seed=0)


def optuna_points(config: TuneConfig, space: dict, values: list[float], seed: int = 0) -> list[dict]:
    search = make_search(config, space, "min", seed)
    assert isinstance(search, OptunaSearch)
    points = []
    for number, value in enumerate(values):
        points.append(search.suggest(number))
        search.tell(number, [value])
    return points


def test_optuna_is_reproducible_and_learns_from_results():
    config = TuneConfig(search="optuna", num_samples=30)
    space = parse_block({"optim.lr": "loguniform(1e-4, 1e-1)", "model.width": [32, 64], "x": "randint(0, 9)"})
    falling = [1.0 / (number + 1) for number in range(30)]
    one = optuna_points(config, space, falling)
    assert one == optuna_points(config, space, falling)
    assert one != optuna_points(config, space, falling[::-1])
    assert one[:5] == optuna_points(config, space, falling[::-1])[:5]  # its first ones are random
    for point in one:
        assert 1e-4 <= point["optim.lr"] <= 1e-1
        assert point["model.width"] in (32, 64)
        assert point["x"] in range(9)


def test_optuna_tries_given_points_first_and_counts_an_infeasible_one_as_the_worst():
    space = parse_block({"optim.lr": "loguniform(1e-4, 1e-1)", "model.width": [32, 64]})
    config = TuneConfig(search="optuna", num_samples=3, points=[{"optim.lr": 0.05, "model.width": 64}])
    search = OptunaSearch(config, space, "min", seed=0)
    assert search.total == 4
    assert search.suggest(0) == {"optim.lr": 0.05, "model.width": 64}
    search.tell(0, [None])
    assert search.suggest(1).keys() == {"optim.lr", "model.width"}


def test_optuna_resolves_a_conditional_range_with_the_values_chosen_before(tmp_path, monkeypatch):
    (tmp_path / "ranges.py").write_text(
        "def lr(point):\n    return 'uniform(0, 1)' if point['model.width'] == 32 else 2.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    space = parse_block({"optim.lr": "by(ranges:lr)", "model.width": [32, 64]})
    for point in optuna_points(TuneConfig(search="optuna", num_samples=12), space, [0.5] * 12):
        assert 0 <= point["optim.lr"] <= 1 if point["model.width"] == 32 else point["optim.lr"] == 2.0
