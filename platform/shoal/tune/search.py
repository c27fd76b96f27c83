"""Where the points of a sweep come from: drawn at random, all of a grid, or suggested by Optuna. It needs no Ray."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal.errors import ConfigError
from shoal.tune.config import TuneConfig
from shoal.tune.engine import PlannedSearch, Search
from shoal.tune.keys import typed_point
from shoal.tune.space.domains import (
    By,
    Choice,
    Domain,
    Grid,
    LogUniform,
    Point,
    QUniform,
    RandInt,
    Space,
    Uniform,
    is_domain,
    is_random,
)
from shoal.tune.space.sampling import grid_points, point_key, resolve, sample
from shoal.tune.trials import Mode

ENOUGH_TRIALS = 16


def make_search(config: TuneConfig, space: Space, mode: Mode, seed: int) -> Search:
    """Make the search a config names; its `points` come first and do not count in `num_samples`.

    Raises:
        ConfigError: the search cannot use the space.
    """
    if config.search == "optuna":
        return OptunaSearch(config, space, mode, seed)
    return PlannedSearch([typed_point(point) for point in planned_points(config, space, seed)])


def planned_points(config: TuneConfig, space: Space, seed: int) -> list[Point]:
    """Return the points of a random or grid search.

    Each draw from the random ranges is tried at every point of the grids, as Ray Tune does with
    `constant_grid_search`: two such points differ by the grid's keys alone, e.g. by the width.

    Raises:
        ConfigError: a grid search of random ranges, or several samples of grids alone.
    """
    given = [
        sample(space, _generator(seed, -1 - number), point) for number, point in enumerate(config.points)
    ]
    if config.search == "grid" and is_random(space):
        raise ConfigError(
            "tune.search=grid needs lists and the space has random ranges: write lists such as "
            "optim.lr=0.001,0.01, or set tune.search=random"
        )
    grid = grid_points(space)
    if not is_random(space):
        if config.num_samples not in (None, 1):
            raise ConfigError(
                f"tune.num_samples={config.num_samples} of a grid alone would repeat the same points: set "
                "tune.repeat for several seeds a point, or give a random range"
            )
        named = {point_key(typed_point(point)) for point in given}
        return given + [point for point in grid if point_key(typed_point(point)) not in named]
    samples = config.num_samples or math.ceil(ENOUGH_TRIALS / len(grid))
    return given + [
        sample(space, _generator(seed, number), point) for number in range(samples) for point in grid
    ]


class OptunaSearch:
    """Optuna's TPE sampler (Bergstra et al. 2011); grids are categorical choices to it."""

    learns = True

    def __init__(self, config: TuneConfig, space: Space, mode: Mode, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.total = len(config.points) + (config.num_samples or ENOUGH_TRIALS)
        self._space = space
        self._worst = math.inf if mode == "min" else -math.inf
        self._study = optuna.create_study(
            direction="minimize" if mode == "min" else "maximize",
            sampler=optuna.samplers.TPESampler(seed=seed % 2**32),
        )
        self._given = config.points
        for point in config.points:
            self._study.enqueue_trial({key: _encoded(space, key, value) for key, value in point.items()})
        self._asked: dict[int, Any] = {}

    def suggest(self, number: int) -> Point:
        asked = self._asked[number] = self._study.ask()
        point: Point = {}
        # Conditional ranges come last: they depend on the other values.
        for key, domain in sorted(self._space.items(), key=lambda item: isinstance(item[1], By)):
            found = resolve(domain, point, key)
            point[key] = _ask(asked, key, found) if is_domain(found) else found
        return typed_point(point | (self._given[number] if number < len(self._given) else {}))

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        """Report the values of a point's repeats; a point without any counts as infinitely bad."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        self._study.tell(self._asked[number], float(np.mean(known)) if known else self._worst)


def _ask(asked: Any, key: str, domain: Domain) -> Any:
    match domain:
        case Grid(values) | Choice(values):
            return values[asked.suggest_categorical(key, list(range(len(values))))]
        case LogUniform(low, high):
            return asked.suggest_float(key, low, high, log=True)
        case Uniform(low, high):
            return asked.suggest_float(key, low, high)
        case QUniform():
            first, last = domain.steps
            return domain.multiple(asked.suggest_int(key, first, last))
        case RandInt(low, high):
            return asked.suggest_int(key, low, high - 1)
    raise AssertionError(domain)


def _encoded(space: Space, key: str, value: Any) -> Any:
    """Return a value as Optuna stores it: of a list, its index."""
    domain = space.get(key)
    is_listed = isinstance(domain, Grid | Choice) and value in domain.values
    return domain.values.index(value) if is_listed else value  # type: ignore[union-attr]


def _generator(seed: int, number: int) -> np.random.Generator:
    """Return an independent random stream for each draw, so that more samples do not change earlier ones."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number % 2**64], dtype=np.uint64)))
