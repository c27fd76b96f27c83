"""Ranges for `shoal.tune(config, space={key: range})`. A list is a grid: each of its values is tried."""

from typing import Any

from shoal.config.objects import is_code, register
from shoal.tune.space.domains import Choice, Grid, LogUniform, RandInt, Uniform


def uniform(low: float, high: float) -> Uniform:
    """Return a range of numbers from low to high, uniformly distributed."""
    return Uniform(low, high)


def loguniform(low: float, high: float) -> LogUniform:
    """Return a range of numbers from low, above 0, to high, whose logarithm is uniformly distributed."""
    return LogUniform(low, high)


def randint(low: int, high: int) -> RandInt:
    """Return a range of whole numbers from low to high, without high itself."""
    return RandInt(low, high)


def choice(*values: Any) -> Choice:
    """Return a range of which one value is drawn, each equally likely: `choice("adam", "sgd")`, or a list."""
    return Choice(named_values(values))


def grid(*values: Any) -> Grid:
    """Return a range of which every value is tried: `grid(32, 64)`, or a list."""
    return Grid(named_values(values))


def named_values(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of a list of values; classes and functions become names, as in a config."""
    if len(values) == 1 and isinstance(values[0], list | tuple):
        values = tuple(values[0])
    return tuple(register(value, "the range") if is_code(value) else value for value in values)
