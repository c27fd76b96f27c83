"""Weights of samples, which are stored behind the targets: a row of either becomes bytes, the last 8 are its weight."""

import math

import numpy as np
import torch
from torch import Tensor

WEIGHT_BYTES = 8  # a float64


def with_weights(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return [n, bytes] uint8 of targets [n, ...] and weights [n]."""
    parts = (np.ascontiguousarray(targets), np.ascontiguousarray(weights, dtype=np.float64))
    rows = [as_matrix(part) for part in parts]
    return np.concatenate([row.view(np.uint8) for row in rows], axis=1)


def as_matrix(rows: np.ndarray) -> np.ndarray:
    """Return [n, elements] of [n, ...]. n may be 0, from which NumPy's -1 infers nothing."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def without_weights(stored: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Return what `with_weights` joined: targets, and weights [n].

    Args:
        dtype: of targets [n]; None: they are bytes [n, bytes] themselves.
    """
    targets, weights = stored[:, :-WEIGHT_BYTES].contiguous(), stored[:, -WEIGHT_BYTES:].contiguous()
    return targets if dtype is None else targets.view(dtype)[:, 0], weights.view(torch.float64)[:, 0]
