"""Features to what people know: the columns of a table, the pixels of an image, the tokens of a text.

A unit is one of these. A category is one unit of several features, one for each value.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shoal.data.preprocessing import Column, Transform
from shoal.data.sources.base import Block
from shoal.data.text import TOKENS
from shoal.data.tokenizer import END, MASK, PAD, tokenizer_from_json

ARRAYS = ("tensor", "ready")  # kinds of columns of which each element is a unit of its own
SPECIAL = {PAD: "", MASK: "[MASK]", END: "[END]"}


def columns_of(transform: Transform) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of a table's units, and the unit of each feature [features]."""
    names: list[str] = []
    groups: list[int] = []
    for column in transform.columns:
        if column.kind in ARRAYS:
            groups += range(len(names), len(names) + column.width)
            names += _elements(column)
        else:
            groups += [len(names)] * column.width
            names.append(column.name)
    return tuple(names), torch.tensor(groups)


def _elements(column: Column) -> list[str]:
    if column.width == 1:
        return [column.name]
    return [f"{column.name}[{','.join(map(str, place))}]" for place in np.ndindex(*column.shape)]


def pixels_of(shape: tuple[int, ...]) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of an image's pixels, and the pixel of each number of [channels, height, width]."""
    height, width = shape[-2:]
    names = tuple(f"row {row}, column {column}" for row in range(height) for column in range(width))
    pixels = torch.arange(height * width)
    return names, pixels.repeat(int(np.prod(shape[:-2])))


def patches_of(shape: tuple[int, ...], across: int) -> Tensor:
    """Return the square patch of each number of [..., height, width], with about `across` patches a side."""
    height, width = shape[-2:]
    side = max(1, -(-max(height, width) // across))
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    patches = rows[:, None] * (int(columns[-1]) + 1) + columns
    return patches.expand(shape).reshape(-1)


def cells_of(transform: Transform, block: Block, row: int) -> list[str]:
    """Return the raw values of a row by unit, as text; of a row of tokens their spelling."""
    if transform.tokenizer is not None:
        spelling = tokenizer_from_json(transform.tokenizer).spelling
        return spell(block[TOKENS][row].tolist(), spelling)
    found: list[str] = []
    for column in transform.columns:
        values = block[column.name][row]
        if column.kind in ARRAYS:
            found += [_text(value) for value in np.asarray(values).reshape(-1)]
        else:
            found.append(_text(values))
    return found


def spell(tokens: Sequence[int], spelling: Sequence[bytes]) -> list[str]:
    """Return tokens as text; parts of characters become U+FFFD."""
    return [SPECIAL.get(token, spelling[token].decode(errors="replace")) for token in tokens]


def _text(value: object) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)[:40]
