"""A config from Python: a path, a mapping or another config, and keywords that override it."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shoal.api.objects import as_config_value
from shoal.config.loading import read
from shoal.config.schema import Section, assign, build_config, explain, fields
from shoal.config.secrets import hide
from shoal.errors import ConfigError
from shoal.runs.config import RunConfig
from shoal.tune.space.domains import describe_domain, is_domain

# The path of a YAML file, a mapping with nested or dotted keys, or a config.
ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | Section | None
AnySection = TypeVar("AnySection", bound=Section)


class Config(RunConfig):
    """A checked config of a run: `Config("digits.yaml", **{"optim.lr": 0.01})`, `Config(optim={"lr": 0.01})`.

    Its sections are attributes (`config.optim.lr`); `replace({"optim.lr": 0.1})` returns a changed copy.
    """

    def __init__(self, config: ConfigLike = None, /, **overrides: Any) -> None:
        """Check the keys of a path, a mapping or another config, and of keywords that override it.

        Raises:
            ConfigError: names the first key that is wrong, with its value, its rule and what to do.
        """
        try:
            super().__init__(**tree_of(RunConfig, config, overrides))
        except ValidationError as error:
            raise ConfigError(explain(RunConfig, error)) from None


def make_config(schema: type[AnySection], config: ConfigLike, overrides: Mapping[str, Any]) -> AnySection:
    """Return the checked config of a job.

    Raises:
        ConfigError: names the first key that is wrong.
        UserError: an object that cannot be used, or that cannot be pickled.
    """
    return build_config(schema, tree_of(schema, config, overrides))


def tree_of(schema: type[BaseModel], config: ConfigLike, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config and its overrides say as a nested mapping, objects replaced by names, secrets hidden."""
    if isinstance(config, Section):
        tree = config.model_dump(exclude_unset=True)
    elif isinstance(config, str | os.PathLike):
        tree = read(os.fspath(config), [])
    elif config is None or isinstance(config, Mapping):
        tree = _nested(schema, config or {})
    else:
        raise ConfigError(
            f"config is a {type(config).__name__}: pass the path of a YAML file, a dict, or a shoal.Config"
        )
    for key, value in _leaves(schema, overrides):
        assign(tree, key, as_config_value(key, value))
    return hide(tree)


def _nested(schema: type[BaseModel], mapping: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in _leaves(schema, mapping):
        assign(tree, key, as_config_value(key, value))
    return tree


def _leaves(
    schema: type[BaseModel], mapping: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a mapping with dotted or nested keys, down to the keys of the schema."""
    sections = {key.rpartition(".")[0] for key, _ in fields(schema)}
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if isinstance(value, Section):
            value = value.model_dump(exclude_unset=True)
        if key in sections and isinstance(value, Mapping):
            yield from _leaves(schema, value, f"{key}.")
            continue
        if is_domain(value) and key.partition(".")[0] != "space":
            raise ConfigError(
                f"{key}={describe_domain(value)} is a range, and a training takes one value: sweep it with shoal.tune"
            )
        yield key, value
