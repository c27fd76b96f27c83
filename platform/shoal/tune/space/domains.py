"""The ranges of a search space: what each holds, its rules, and its text."""

import dataclasses
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NoReturn, TypeGuard

import numpy as np

from shoal.config.import_path import is_path
from shoal.errors import ConfigError
from shoal.tune.space.values import plain_value, write_list, write_value

# Overrides of a config: {dotted.key: value}.
Point = dict[str, Any]


class _Range:
    """What all ranges share.

    Attributes:
        word: with which it is written.
        example: for error messages.
    """

    word: ClassVar[str]
    example: ClassVar[str]

    def _refuse(self, rule: str) -> NoReturn:
        raise ConfigError(f"{_describe(self)}: {rule}: write e.g. {self.example}")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen


@dataclass(frozen=True)
class _Values(_Range):
    """A list of values: at least one, and no value twice."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        self._set(values=tuple(plain_value(value) for value in self.values))
        if not self.values:
            self._refuse("it is empty and needs at least one value")
        seen: set[str] = set()
        for value in self.values:
            text = json.dumps(value, sort_keys=True)
            if text in seen:
                self._refuse(f"{write_value(value)} is in it twice and may be there once")
            seen.add(text)


@dataclass(frozen=True)
class Grid(_Values):
    """Every value is tried, in combination with every value of the other grids."""

    word = "grid"
    example = "grid(32, 64, 128)"


@dataclass(frozen=True)
class Choice(_Values):
    """One of the values, each with the same probability."""

    word = "choice"
    example = "choice(adam, sgd)"


@dataclass(frozen=True)
class _Interval(_Range):
    """Finite numbers from low to high."""

    low: float
    high: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._set(**{field.name: self._number(getattr(self, field.name))})
        if not self.low < self.high:
            self._refuse("low must be less than high")

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            self._refuse(f"{write_value(value)} is not a number")
        if not math.isfinite(value):
            self._refuse(f"{value} is not a finite number")
        return float(value)


@dataclass(frozen=True)
class Uniform(_Interval):
    """A number from low to high, uniformly distributed."""

    word = "uniform"
    example = "uniform(0, 0.5)"


@dataclass(frozen=True)
class LogUniform(_Interval):
    """A number from low to high with a uniformly distributed logarithm."""

    word = "loguniform"
    example = "loguniform(1e-4, 1e-1)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            self._refuse("a logarithmic range cannot reach zero, low must be greater than 0")


@dataclass(frozen=True)
class QUniform(_Interval):
    """A multiple of q from low to high, each with the same probability."""

    q: float

    word = "quniform"
    example = "quniform(0, 1, 0.1)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q <= 0:
            self._refuse("q must be greater than 0")
        first, last = self.steps
        if first > last:
            self._refuse("no multiple of q lies between low and high")

    @property
    def steps(self) -> tuple[int, int]:
        """The smallest and the largest integer n with n * q in the range."""
        q = _exact(self.q)
        return math.ceil(_exact(self.low) / q), math.floor(_exact(self.high) / q)

    def multiple(self, step: int) -> float:
        """Return step * q without rounding errors: 3 * 0.1 is 0.3."""
        return float(step * _exact(self.q))

    def nearest(self, value: float) -> float:
        """Return the multiple of q in the range that is nearest to a value."""
        first, last = self.steps
        return self.multiple(min(max(round(_exact(value) / _exact(self.q)), first), last))


@dataclass(frozen=True)
class RandInt(_Range):
    """An integer from low to high, without high itself."""

    low: int
    high: int

    word = "randint"
    example = "randint(1, 9)"

    def __post_init__(self) -> None:
        self._set(low=self._integer(self.low), high=self._integer(self.high))
        if not self.low < self.high:
            self._refuse("low must be less than high, which is itself excluded")

    def _integer(self, value: Any) -> int:
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value != int(value):
            self._refuse(f"{write_value(value)} is not a whole number")
        return int(value)


@dataclass(frozen=True)
class By(_Range):
    """A conditional range: a function receives the values chosen so far and returns a range or a value.

    Attributes:
        path: import path of the function, which takes a `{dotted.key: value}` dict.
    """

    path: str

    word = "by"
    example = "by(package.module:function)"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not is_path(self.path) or "?" in self.path:
            self._refuse(f"{write_value(self.path)} is not the import path of a function")


Domain = Grid | Choice | Uniform | LogUniform | QUniform | RandInt | By
Space = dict[str, Domain]

_KINDS: tuple[type[Domain], ...] = (Grid, Choice, Uniform, LogUniform, QUniform, RandInt, By)
# `grid_search` is Ray Tune's word for a grid.
WORDS: dict[str, type[Domain]] = {kind.word: kind for kind in _KINDS} | {"grid_search": Grid}


def describe_domain(domain: Domain) -> str:
    """Return the text that `parse_setting` reads back as this range."""
    return _describe(domain)


def is_domain(value: Any) -> TypeGuard[Domain]:
    return isinstance(value, _KINDS)


def is_random(space: Space) -> bool:
    """Whether anything besides grids is in the space."""
    return not all(isinstance(domain, Grid) for domain in space.values())


def _exact(value: float) -> Fraction:
    """Return the decimal number as it is written: 0.1 is a tenth, not its nearest binary fraction."""
    return Fraction(repr(float(value)))


def _describe(domain: _Range) -> str:
    if isinstance(domain, _Values):
        values = domain.values
        is_one_list = len(values) == 1 and isinstance(values[0], list)  # choice([[64, 32]]) has one value
        return f"{domain.word}({write_list([list(values)] if is_one_list else values)})"
    arguments = [getattr(domain, field.name) for field in dataclasses.fields(domain)]  # type: ignore[arg-type]
    return f"{domain.word}({', '.join(write_value(argument).removesuffix('.0') for argument in arguments)})"
