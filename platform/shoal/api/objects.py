"""The user's own objects in a config: frames, datasets, classes, functions become names (`shoal.config.objects`)."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.config.objects import is_code, register
from shoal.errors import ConfigError, ModelError

SOURCE, MODEL = "data.source", "model.name"
# Keys of a config that name a user's own code or data; those of LISTS hold several.
KEYS = (SOURCE, MODEL, "data.collate", "train.loss", "optim.name", "optim.schedule")
LISTS = ("train.metrics", "train.callbacks")


def as_config_value(key: str, value: Any) -> Any:
    """Return a value as a config holds it: objects where code or data are named become names.

    Raises:
        UserError: an object that cannot be used there, or that cannot be pickled.
    """
    value = _plain(value)
    if key in LISTS and value is not None:
        values = value if isinstance(value, list | tuple) else [value]
        return [_name(key, _plain(item)) for item in values]
    if key in KEYS:
        return _name(key, value)
    _check_plain(key, value)
    return value


def _name(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if key == MODEL:
        _check_builder(value)
    return register(value, key, is_data=key == SOURCE and not is_code(value))


def _check_builder(value: Any) -> None:
    import torch

    if isinstance(value, torch.nn.Module):
        kind = type(value).__name__
        raise ModelError(
            f"{MODEL} is an instance of {kind}, whose first weights no seed determines: pass the class, {MODEL}={kind} "
            f"with model.args={{...}}, or a function that builds it, lambda: {kind}(...)"
        )
    if not callable(value):
        raise ModelError(
            f"{MODEL} is a {type(value).__name__}: pass a name, an nn.Module class, or a function that returns a model"
        )


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's, and paths as text."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_plain(key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_plain(f"{key}.{name}", inner)
    elif is_code(value):
        raise ConfigError(
            f"{key} is '{getattr(value, '__name__', value)}', a {type(value).__name__}: it takes text, numbers or "
            f"lists; objects go into {', '.join((*KEYS, *LISTS))}"
        )
