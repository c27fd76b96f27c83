"""Values of a config in a search space: which are allowed, how a list of them is read, and how one is written."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from shoal.config.loading import Loader
from shoal.errors import ConfigError


def plain_value(value: Any) -> Any:
    """Return a value in plain Python types.

    Raises:
        ConfigError: JSON cannot hold it, or it is not finite.
    """
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
        "use numbers, texts, true, false, null, and lists and mappings by text of them"
    )


def read_list(text: str) -> list[Any] | None:
    """Read the inside of a YAML list; None when it is not one."""
    try:
        values = yaml.load(f"[{text}]", Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: 2024-13-45 is no date
        return None
    return values if isinstance(values, list) else None


def has_paired_brackets(value: Any) -> bool:
    """Whether a list element is complete, and not a part of `f(a, b)` that was split at its comma."""
    return not isinstance(value, str) or value.count("(") == value.count(")")


def write_value(value: Any) -> str:
    """Write a value so that it reads back; a text goes without quotes where it can."""
    if isinstance(value, str) and re.fullmatch(r"\w[\w./:+-]*", value) and read_list(value) == [value]:
        return value
    return json.dumps(value, ensure_ascii=False, default=repr)


def write_list(values: Sequence[Any]) -> str:
    """Write the inside of a list, for `read_list`."""
    return ", ".join(write_value(value) for value in values)
