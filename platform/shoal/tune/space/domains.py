"""Ranges of keys: what each holds, and how it is written."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NoReturn, TypeGuard

import numpy as np
import yaml

from shoal.config.import_path import is_path
from shoal.config.loading import Loader
from shoal.errors import ConfigError

Point = dict[str, Any]


class _Range:
    """What all ranges share: the word they are written with and an example of it."""

    word: ClassVar[str]
    example: ClassVar[str]

    def _refuse(self, rule: str) -> NoReturn:
        raise ConfigError(f"{_text(self)}: {rule}: write e.g. {self.example}")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Values(_Range):
    """Values one by one: at least one, and no value twice."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        self._set(values=tuple(plain_value(value) for value in self.values))
        if not self.values:
            self._refuse("it is empty and needs at least one value")
        seen: set[str] = set()
        for value in self.values:
            text = json.dumps(value, sort_keys=True)
            if text in seen:
                self._refuse(f"{_show(value)} is in it twice and may be there once")
            seen.add(text)


@dataclass(frozen=True)
class Grid(Values):
    """Every value is tried, together with every value of the other grids."""

    word = "grid"
    example = "grid(32, 64, 128)"


@dataclass(frozen=True)
class Choice(Values):
    """One of the values, each as likely."""

    word = "choice"
    example = "choice(adam, sgd)"


@dataclass(frozen=True)
class _Interval(_Range):
    low: float
    high: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._set(**{field.name: self._number(getattr(self, field.name))})
        if not self.low < self.high:
            self._refuse("low must be less than high")

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            self._refuse(f"{_show(value)} is not a number")
        if not math.isfinite(value):
            self._refuse(f"{value} is not a finite number")
        return float(value)


@dataclass(frozen=True)
class Uniform(_Interval):
    """A number from low to high."""

    word = "uniform"
    example = "uniform(0, 0.5)"


@dataclass(frozen=True)
class LogUniform(_Interval):
    """A number from low to high whose logarithm is uniform."""

    word = "loguniform"
    example = "loguniform(1e-4, 1e-1)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            self._refuse("a logarithmic range cannot reach zero, low must be greater than 0")


@dataclass(frozen=True)
class QUniform(_Interval):
    """A multiple of q from low to high, each as likely."""

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
        """The least and the greatest number of q's that lie in the range."""
        q = exact(self.q)
        return math.ceil(exact(self.low) / q), math.floor(exact(self.high) / q)


@dataclass(frozen=True)
class RandInt(_Range):
    """A whole number from low to high, high itself excluded."""

    low: int
    high: int

    word = "randint"
    example = "randint(1, 9)"

    def __post_init__(self) -> None:
        self._set(low=self._whole(self.low), high=self._whole(self.high))
        if not self.low < self.high:
            self._refuse("low must be less than high, which is itself excluded")

    def _whole(self, value: Any) -> int:
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value != int(value):
            self._refuse(f"{_show(value)} is not a whole number")
        return int(value)


@dataclass(frozen=True)
class By(_Range):
    """The range or value that a function returns when called with the values chosen so far."""

    path: str

    word = "by"
    example = "by(package.module:function)"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not is_path(self.path) or "?" in self.path:
            self._refuse(f"{_show(self.path)} is not the import path of a function")


Domain = Grid | Choice | Uniform | LogUniform | QUniform | RandInt | By
Space = dict[str, Domain]

_KINDS: tuple[type[Domain], ...] = (Grid, Choice, Uniform, LogUniform, QUniform, RandInt, By)
WORDS: dict[str, type[Domain]] = {kind.word: kind for kind in _KINDS} | {"grid_search": Grid}


def describe_domain(domain: Domain) -> str:
    """Return the text that `parse_setting` reads back as this range."""
    return _text(domain)


def is_log(domain: Domain) -> bool:
    """Whether the range is uniform in the logarithm."""
    return isinstance(domain, LogUniform)


def is_random(space: Space) -> bool:
    """Whether anything besides grids is in the space."""
    return not all(isinstance(domain, Grid) for domain in space.values())


def quantised(domain: QUniform, value: float) -> float:
    """Return the multiple of q in the range that is nearest to a value, as short a float as q is."""
    first, last = domain.steps
    steps = min(max(round(exact(value) / exact(domain.q)), first), last)
    return float(steps * exact(domain.q))


def is_whole(value: Any) -> bool:
    """Whether a value is no part of `f(a, b)` torn at its comma."""
    return not isinstance(value, str) or value.count("(") == value.count(")")


def elements(text: str) -> list[Any] | None:
    """Read the inside of a YAML list; None when it is not one."""
    try:
        values = yaml.load(f"[{text}]", Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: 2024-13-45 is no date
        return None
    return values if isinstance(values, list) else None


def plain_value(value: Any) -> Any:
    """Return a value in plain Python types only, or refuse it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain_value(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value}: it is not a finite number: use one that is")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{value!r}: a {type(value).__name__} is no value of a config: "
        "use numbers, texts (in quotes if they are dates), true, false, null, and lists and mappings by text of them"
    )


def is_domain(value: Any) -> TypeGuard[Domain]:
    return isinstance(value, _KINDS)


def exact(value: float) -> Fraction:
    """The decimal number as it is written: 0.1 is a tenth, not its nearest binary fraction."""
    return Fraction(repr(float(value)))


def _text(domain: _Range) -> str:
    if isinstance(domain, Values):
        values = domain.values
        is_one_list = len(values) == 1 and isinstance(values[0], list)
        return f"{domain.word}({join_values([list(values)] if is_one_list else values)})"
    arguments = [getattr(domain, field.name) for field in dataclasses.fields(domain)]  # type: ignore[arg-type]
    return f"{domain.word}({', '.join(_show(argument).removesuffix('.0') for argument in arguments)})"


def join_values(values: list[Any] | tuple[Any, ...]) -> str:
    return ", ".join(_show(value) for value in values)


def _show(value: Any) -> str:
    """Write a value so that it reads back; a word goes without quotes where it can."""
    if isinstance(value, str) and re.fullmatch(r"\w[\w./:+-]*", value) and elements(value) == [value]:
        return value
    return json.dumps(value, ensure_ascii=False, default=repr)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
