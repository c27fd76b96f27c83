"""Params of trials as text."""

from collections.abc import Mapping
from typing import Any


def params_text(params: Mapping[str, Any]) -> str:
    """Write a point as `optim.lr=0.00123  model.width=64`."""
    return "  ".join(f"{key}={value_text(value)}" for key, value in params.items())


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
