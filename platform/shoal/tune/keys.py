"""Config keys in a sweep: ranges that fit a key, values of it that are the same, keys that make trials incomparable.

It depends on the schema of a run, not on that of a sweep.
"""

import types
from collections.abc import Callable, Collection
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from shoal.config.schema import fields
from shoal.errors import ConfigError
from shoal.runs.config import RunConfig
from shoal.tasks.registry import TASKS
from shoal.tune.space.domains import (
    Choice,
    Domain,
    Grid,
    LogUniform,
    Point,
    QUniform,
    Uniform,
    describe_domain,
)
from shoal.tune.space.sampling import point_key
from shoal.tune.space.values import plain_value, write_value

FIELDS = dict(fields(RunConfig))
# Trials that differ in one of these are measured on other rows.
CHOOSES_ROWS = (
    "data.source",
    "data.label",
    "data.split_seed",
    "data.validation_fraction",
    "data.test_fraction",
)
COMPARABLE_TOKENS = "val/bits_per_byte"


def typed_point(point: Point) -> Point:
    """Return a point with its values as the config has them: of a key that holds fractions, 1 is 1.0.

    A value that the config refuses stays as it is, and is refused where the trial's config is built.
    """
    return {key: _typed_value(key, value) for key, value in point.items()}


def check_range(key: str, domain: Domain, parameter_type: type | None = None) -> None:
    """Refuse a range with values that a key cannot take, or a list that names a value twice.

    Args:
        parameter_type: of the builder's parameter that the key sets, where the schema does not know it.

    Raises:
        ConfigError: with the range that fits.
    """
    if isinstance(domain, Grid | Choice):
        _check_values(key, domain)
    taken = _types(FIELDS[key].annotation) if key in FIELDS else {parameter_type or Any}
    if float in taken or Any in taken:
        return
    text = f"{key}={describe_domain(domain)}"
    if isinstance(domain, Uniform | LogUniform):
        if int not in taken:
            raise ConfigError(
                f"{text}: it draws fractions and '{key}' takes none: list values, {Choice.example}"
            )
        low, high = int(domain.low), int(domain.high) + 1
        raise ConfigError(
            f"{text}: it draws fractions and '{key}' is a whole number: write randint({low}, {high}), or a list"
        )
    if isinstance(domain, QUniform) and not all(domain.multiple(step).is_integer() for step in (0, 1)):
        raise ConfigError(
            f"{text}: '{key}' is a whole number and {domain.q:g} is not: write quniform with a whole q, or randint"
        )


def why_incomparable(keys: Collection[str], task: str, metric: str, stops_early: bool) -> str | None:
    """Return why trials that differ in some of these keys have no best one, with the remedy; None if they do.

    Args:
        keys: those that are swept.
        stops_early: whether a scheduler compares trials at the same evaluation.
    """
    if "task" in keys:
        return (
            f"'task' is swept, and {metric} of one task does not compare with another's: run a sweep for each"
        )
    learns_text = not TASKS[task].has_label
    for key in (*CHOOSES_ROWS, *(["data.text"] if learns_text else [])):
        if key in keys:
            return (
                f"'{key}' is swept: its trials are measured on other rows, so {metric} does not say which is the "
                "best: run a sweep for each value"
            )
    if learns_text and "data.tokenizer" in keys and metric != COMPARABLE_TOKENS:
        return (
            f"'data.tokenizer' is swept and {metric} is per token, of which each tokenizer makes others: set "
            f"tune.metric={COMPARABLE_TOKENS}"
        )
    if stops_early and "train.evaluate_every_steps" in keys:
        return (
            "'train.evaluate_every_steps' is swept and the scheduler compares trials at the same evaluation, which "
            "is at another step of each: set tune.scheduler=none"
        )
    return None


def _check_values(key: str, domain: Grid | Choice) -> None:
    seen: dict[str, Any] = {}
    for value in domain.values:
        same = seen.setdefault(point_key({key: _typed_value(key, value)}), value)
        if same is not value:
            raise ConfigError(
                f"{key}={describe_domain(domain)}: {write_value(same)} and {write_value(value)} are the same value of "
                f"'{key}': keep one of them"
            )


def _typed_value(key: str, value: Any) -> Any:
    validate = _validator(key)
    if validate is None:
        return value
    try:
        return plain_value(validate(value))
    except ValidationError:
        return value


@cache
def _validator(key: str) -> Callable[[Any], Any] | None:
    field = FIELDS.get(key)
    if field is None:
        return None
    kind: Any = field.annotation
    for rule in field.metadata:
        kind = Annotated[kind, rule]
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python


def _types(annotation: Any) -> set[Any]:
    """Return the types that a key's value may have."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (types.UnionType, Union):
        return {kind for inner in get_args(annotation) for kind in _types(inner)}
    return {Literal if origin is Literal else annotation}
