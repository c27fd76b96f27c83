"""Points of a space: drawn at random, all of a grid, the extreme ones; and the seed of a point."""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from shoal.config.import_path import find
from shoal.errors import ConfigError, UserError
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
    describe_domain,
    is_domain,
)
from shoal.tune.space.parsing import read_value

MAX_CORNERS = 64


def sample(space: Space, rng: np.random.Generator, given: Point | None = None) -> Point:
    """Draw a point; keys in `given` are kept, and do not change how the others are drawn.

    Each key has a random stream of its own, so a draw does not depend on the other keys of the space; conditional keys
    are drawn last. The generator is advanced once, whatever the space.
    """
    root = rng.integers(2**64, dtype=np.uint64)
    point = dict(given or {})
    for key in _conditional_last(space):
        if key not in point:
            chosen = resolve(space[key], point, key)
            point[key] = _draw(chosen, _child(root, key)) if is_domain(chosen) else chosen
    return _in_order(space, point)


def resolve(domain: Domain, point: Point, key: str = "by") -> Any:
    """Call the function of a conditional range with a point, and return its range or plain value.

    Any other range is returned unchanged.

    Args:
        key: for error messages.

    Raises:
        ConfigError: the function is not found, raises, or returns another conditional range or nonsense.
    """
    if not isinstance(domain, By):
        return domain
    name = f"{key}={describe_domain(domain)}"
    try:
        function = find(domain.path, key)
    except UserError as error:
        raise ConfigError(_one_line(error)) from error
    try:
        result = function(copy.deepcopy(point))  # the function may change its own
    except Exception as error:
        raise ConfigError(
            f"{name} raised {type(error).__name__}: {_one_line(error)}: fix it; "
            f"the keys it receives here are {', '.join(point) or 'none'}"
        ) from error
    try:
        found = read_value(result)
    except ConfigError as error:
        raise ConfigError(f"{name} returned {_one_line(error)}") from None
    if isinstance(found, By):
        raise ConfigError(
            f"{name} returned {describe_domain(found)}: return a range or a value, not another by()"
        )
    return found


def grid_points(space: Space) -> list[Point]:
    """Return every combination of the grids' values, the first key slowest; one empty point without grids."""
    grids = {key: domain.values for key, domain in space.items() if isinstance(domain, Grid)}
    return [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]


def corners(space: Space) -> list[Point]:
    """Return the extreme points: every value of a list and both ends of an interval.

    All combinations where they are at most `MAX_CORNERS`; else the first one, and those that differ from it in one key.
    """
    points = list(itertools.islice(_combinations(space), MAX_CORNERS + 1))
    if len(points) > MAX_CORNERS:
        first = points[0]
        points = [
            next(_combinations(space | {key: Grid((value,))}))
            for key, domain in space.items()
            for value in _extremes(domain, first, key)
        ]
    return [_in_order(space, point) for point in {canonical(point): point for point in points}.values()]


def canonical(point: Point) -> str:
    """Return a text that is the same for equal points, whatever the order of their keys."""
    return json.dumps(point, sort_keys=True, separators=(",", ":"), allow_nan=False)


def point_key(point: Point) -> str:
    """Return a text that is the same for points that give the same trial: 1 and 1.0 are equal, true and 1 are not."""
    return canonical(_with_whole_numbers(point))


def point_seed(seed: int, point: Point, repeat: int) -> int:
    """Return the seed, in [0, 2**31), of one repeat of a point in the sweep with this seed."""
    digest = hashlib.sha256(f"{seed}/{repeat}/{canonical(point)}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _with_whole_numbers(value: Any) -> Any:
    """Return a value with every float that is a whole number as an integer."""
    if isinstance(value, dict):
        return {key: _with_whole_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _conditional_last(space: Space) -> list[str]:
    return sorted(space, key=lambda key: isinstance(space[key], By))


def _in_order(space: Space, point: Point) -> Point:
    return {key: point[key] for key in space} | point


def _child(root: np.uint64, key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    words = np.array([root, int.from_bytes(digest[:8])], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def _draw(domain: Domain, rng: np.random.Generator) -> Any:
    match domain:
        case Grid() | Choice():
            return domain.values[int(rng.integers(len(domain.values)))]
        case RandInt():
            return int(rng.integers(domain.low, domain.high))
        case QUniform():
            first, last = domain.steps
            return domain.multiple(int(rng.integers(first, last, endpoint=True)))
        case LogUniform():
            value = math.exp(rng.uniform(math.log(domain.low), math.log(domain.high)))
            return min(max(value, domain.low), domain.high)  # exp(log(x)) may differ from x in the last bit
        case Uniform():
            return float(rng.uniform(domain.low, domain.high))
        case By():
            raise TypeError("a conditional range is resolved before a value is drawn")


def _combinations(space: Space) -> Iterator[Point]:
    """Yield every combination of extremes, the first key slowest and conditional keys last."""

    def extend(point: Point, keys: list[str]) -> Iterator[Point]:
        if not keys:
            yield point
            return
        for value in _extremes(space[keys[0]], point, keys[0]):
            yield from extend(point | {keys[0]: value}, keys[1:])

    return extend({}, _conditional_last(space))


def _extremes(domain: Domain, point: Point, key: str) -> list[Any]:
    found = resolve(domain, point, key)
    match found:
        case Grid() | Choice():
            return list(found.values)
        case RandInt():
            return [found.low, found.high - 1]
        case QUniform():
            return [found.nearest(found.low), found.nearest(found.high)]
        case Uniform() | LogUniform():
            return [found.low, found.high]
    return [found]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
