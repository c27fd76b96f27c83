"""The search space of a sweep as plain data: a sample is a set of `{dotted.key: value}` overrides of a config.

It knows how ranges are written, checked, drawn from and told apart. It knows neither the config the keys belong
to nor who searches: Ray Tune and Optuna are others' business. The words are Ray Tune's; `by(module:function)`
is a range that a Python function of the values chosen so far returns.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NoReturn, TypeGuard

import numpy as np
import yaml

from shoal.errors import ConfigError, UserError, nearest
from shoal.importing import find, is_path
from shoal.settings import Loader

Point = dict[str, Any]

MAX_CORNERS = 64


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
class _Values(_Range):
    """Values one by one: at least one, and no value twice."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        self._set(values=tuple(_plain(value) for value in self.values))
        if not self.values:
            self._refuse("it is empty and needs at least one value")
        seen: set[str] = set()
        for value in self.values:
            text = json.dumps(value, sort_keys=True)
            if text in seen:
                self._refuse(f"{_show(value)} is in it twice and may be there once")
            seen.add(text)


@dataclass(frozen=True)
class Grid(_Values):
    """Every value is tried, together with every value of the other grids."""

    word = "grid"
    example = "grid(32, 64, 128)"


@dataclass(frozen=True)
class Choice(_Values):
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
        q = _exact(self.q)
        return math.ceil(_exact(self.low) / q), math.floor(_exact(self.high) / q)


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


def parse_setting(key: str, text: str) -> Domain | None:
    """Read the value of a `key=value` setting; None when it is a plain value and not a range.

    A range is a word with brackets, `loguniform(1e-4, 1e-1)`, or a list with commas, `32,64,128`. Quotes keep
    a text from being either: `'f(x)'`.

    Raises:
        ConfigError: the word is unknown, or the range breaks one of its rules.
    """
    try:
        return _parse(text.strip())
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from None


def parse_block(block: Mapping[str, Any]) -> Space:
    """Read the `space:` block of a YAML file, in which every key is a range.

    Keys are dotted or nested; a value is a text as in `parse_setting`, a list, or `{word: arguments}`.

    Raises:
        ConfigError: a value is no range, breaks a rule of ranges, or a key is there twice.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(
            f"space={block!r}: it must hold `key: range` lines, e.g. optim.lr: {LogUniform.example}"
        )
    space: Space = {}
    for key, domain in _entries(block, ""):
        if key in space:
            raise ConfigError(
                f"{key}={describe_domain(domain)}: the key is in space: twice: keep one of them"
            )
        space[key] = domain
    return space


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
    steps = min(max(round(_exact(value) / _exact(domain.q)), first), last)
    return float(steps * _exact(domain.q))


def sample(space: Space, rng: np.random.Generator, given: Point | None = None) -> Point:
    """Draw a point; keys in `given` are kept, and what they are does not change how the others are drawn.

    Conditional keys are drawn last. The generator is used once, whatever the space.
    """
    root = rng.integers(2**64, dtype=np.uint64)
    point = dict(given or {})
    for key in _in_order_of_choice(space):
        if key not in point:
            chosen = resolve(space[key], point, key)
            point[key] = _draw(chosen, _child(root, key)) if _is_domain(chosen) else chosen
    return _in_order(space, point)


def resolve(domain: Domain, point: Point, key: str = "by") -> Any:
    """Call the function of a conditional range with a point and return the range or the plain value it gives.

    Any other range is returned as it is. The key is for messages.

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
            f"{name} raised {type(error).__name__}: {_one_line(error)}: mend it; "
            f"the keys it is given here are {', '.join(point) or 'none'}"
        ) from error
    try:
        found = _read(result)
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

    All combinations when they are at most `MAX_CORNERS`; else one key at a time leaves the first of them.
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


def point_seed(seed: int, point: Point, repeat: int) -> int:
    """Return the seed, in [0, 2**31), of one repeat of a point in the sweep with this seed."""
    digest = hashlib.sha256(f"{seed}/{repeat}/{canonical(point)}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _entries(block: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Domain]]:
    for name, value in block.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and WORDS.keys().isdisjoint(value):
            yield from _entries(value, f"{key}.")
        else:
            yield key, _entry(key, value)


def _entry(key: str, value: Any) -> Domain:
    if isinstance(value, Mapping) and len(value) > 1:
        raise ConfigError(f"{key}={value!r}: a range is one word: write e.g. {{loguniform: [1e-4, 1e-1]}}")
    try:
        domain = _read(value)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from None
    if not _is_domain(domain):
        raise ConfigError(f"{key}={value!r}: it is a value and not a range: set it outside of space:")
    return domain


def _read(value: Any) -> Any:
    """Turn what a file or a function says into a range or a plain value."""
    if _is_domain(value):
        return value
    if isinstance(value, str):
        return _parse(value.strip()) or value
    if isinstance(value, list | tuple):
        return Grid(tuple(value))
    if isinstance(value, Mapping) and len(value) == 1:
        [(word, arguments)] = value.items()
        if word in WORDS:
            return _make(word, arguments if isinstance(arguments, list | tuple) else [arguments])
    return _plain(value)


def _parse(text: str) -> Domain | None:
    call = re.match(r"([A-Za-z_]\w*)(\s*)\(", text)
    if call and call[1] in WORDS:
        return _make(call[1], _arguments(text, call[1], text[call.end() : -1]))
    if call and not call[2] and text.endswith(")"):
        raise ConfigError(
            f"{text}: unknown range '{call[1]}'{nearest(call[1].lower(), WORDS)}: "
            f"the ranges are {', '.join(WORDS)}; a plain text goes in quotes"
        )
    return _comma_list(text)


def _arguments(text: str, word: str, inside: str) -> list[Any]:
    example = WORDS[word].example
    if not text.endswith(")"):
        raise ConfigError(
            f"{text}: the bracket after '{word}' does not close at the end: write e.g. {example}"
        )
    values = _elements(inside)
    if values is None:
        raise ConfigError(
            f"{text}: '{inside}' is not a list: write e.g. {example}, and quote texts with signs in them"
        )
    is_one_list = len(values) == 1 and isinstance(values[0], list)  # Ray Tune writes choice([adam, sgd])
    return values[0] if is_one_list and issubclass(WORDS[word], _Values) else values


def _make(word: str, arguments: list[Any] | tuple[Any, ...]) -> Domain:
    kind = WORDS[word]
    if issubclass(kind, Grid | Choice):
        return kind(tuple(arguments))
    names = [field.name for field in dataclasses.fields(kind)]
    if len(arguments) != len(names):
        raise ConfigError(
            f"{word}({_join(arguments)}): it has {len(arguments)} arguments and takes {len(names)} "
            f"({', '.join(names)}): write e.g. {kind.example}"
        )
    return kind(*arguments)


def _comma_list(text: str) -> Grid | None:
    values = _elements(text)
    if values is None or len(values) < 2 or not all(_is_whole(value) for value in values):
        return None
    if "{" not in text and any(isinstance(value, dict) for value in values):
        return None  # `a: 1, b: 2` lacks its braces
    return Grid(tuple(values))


def _is_whole(value: Any) -> bool:
    """Whether a value is no part of `f(a, b)` torn at its comma."""
    return not isinstance(value, str) or value.count("(") == value.count(")")


def _elements(text: str) -> list[Any] | None:
    """Read the inside of a YAML list; None when it is not one."""
    try:
        values = yaml.load(f"[{text}]", Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: 2024-13-45 is no date
        return None
    return values if isinstance(values, list) else None


def _plain(value: Any) -> Any:
    """Return a value in plain Python types only, or refuse it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value}: it is not a finite number: use one that is")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{value!r}: a {type(value).__name__} is no value of a config: "
        "use numbers, texts (in quotes if they are dates), true, false, null, and lists and mappings by text of them"
    )


def _is_domain(value: Any) -> TypeGuard[Domain]:
    return isinstance(value, _KINDS)


def _in_order_of_choice(space: Space) -> list[str]:
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
            return float(int(rng.integers(first, last, endpoint=True)) * _exact(domain.q))
        case LogUniform():
            value = math.exp(rng.uniform(math.log(domain.low), math.log(domain.high)))
            return min(max(value, domain.low), domain.high)  # exp(log(x)) may miss x by a hair
        case Uniform():
            return float(rng.uniform(domain.low, domain.high))
        case By():
            raise TypeError("a conditional range is resolved before it is drawn from")


def _combinations(space: Space) -> Iterator[Point]:
    """Yield every combination of extremes, in the order of choice: the first key slowest."""

    def extend(point: Point, keys: list[str]) -> Iterator[Point]:
        if not keys:
            yield point
            return
        for value in _extremes(space[keys[0]], point, keys[0]):
            yield from extend(point | {keys[0]: value}, keys[1:])

    return extend({}, _in_order_of_choice(space))


def _extremes(domain: Domain, point: Point, key: str) -> list[Any]:
    found = resolve(domain, point, key)
    match found:
        case Grid() | Choice():
            return list(found.values)
        case RandInt():
            return [found.low, found.high - 1]
        case QUniform():
            return [quantised(found, found.low), quantised(found, found.high)]
        case Uniform() | LogUniform():
            return [found.low, found.high]
    return [found]


def _exact(value: float) -> Fraction:
    """The decimal number as it is written: 0.1 is a tenth, not its nearest binary fraction."""
    return Fraction(repr(float(value)))


def _text(domain: _Range) -> str:
    if isinstance(domain, _Values):
        values = domain.values
        is_one_list = len(values) == 1 and isinstance(values[0], list)
        return f"{domain.word}({_join([list(values)] if is_one_list else values)})"
    arguments = [getattr(domain, field.name) for field in dataclasses.fields(domain)]  # type: ignore[arg-type]
    return f"{domain.word}({', '.join(_show(argument).removesuffix('.0') for argument in arguments)})"


def _join(values: list[Any] | tuple[Any, ...]) -> str:
    return ", ".join(_show(value) for value in values)


def _show(value: Any) -> str:
    """Write a value so that it reads back; a word goes without quotes where it can."""
    if isinstance(value, str) and re.fullmatch(r"\w[\w./:+-]*", value) and _elements(value) == [value]:
        return value
    return json.dumps(value, ensure_ascii=False, default=repr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
