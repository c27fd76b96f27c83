"""Trees of tensors: what a model takes and what a loss compares with, where that is more than one tensor.

Every tensor of a tree has the rows in dimension 0. A single tensor is the commonest tree, and costs a step nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shoal.errors import DataError

Tree: TypeAlias = "Tensor | Mapping[str, Tree] | tuple[Tree, ...] | list[Tree]"


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Return a tree of the same form: what `function` returns for each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(function, branch) for name, branch in tree.items()}
    branches = [map_tensors(function, branch) for branch in tree]
    kind: Callable[..., Tree] = type(tree)
    return (
        kind(*branches) if hasattr(tree, "__match_args__") else kind(branches)
    )  # a named tuple, or a plain one


def tensors(tree: Tree) -> Iterator[Tensor]:
    """Yield a tree's tensors, in its order."""
    if isinstance(tree, Tensor):
        yield tree
        return
    for branch in tree.values() if isinstance(tree, Mapping) else tree:
        yield from tensors(branch)


def first_tensor(tree: Tree) -> Tensor:
    return tree if isinstance(tree, Tensor) else next(tensors(tree))


def only_tensor(tree: Tree) -> Tensor:
    """Return a tree that is one tensor.

    Raises:
        DataError: it is more than that, and the caller has no use for more.
    """
    if isinstance(tree, Tensor):
        return tree
    raise DataError(
        f"one tensor is expected, and there are {describe(tree)}: return one array from the data, or set task=custom "
        "with a train.loss that takes them all"
    )


def row_count(tree: Tree) -> int:
    return len(first_tensor(tree))


def select_rows(tree: Tree, rows: slice | Tensor) -> Tree:
    """Return some rows: views for a slice, copies for a tensor of row numbers."""
    return tree[rows] if isinstance(tree, Tensor) else map_tensors(lambda tensor: tensor[rows], tree)


def clone(tree: Tree) -> Tree:
    """Return a copy on which a model may write."""
    return tree.clone() if isinstance(tree, Tensor) else map_tensors(Tensor.clone, tree)


def to_device(tree: Tree, device: torch.device) -> Tree:
    return map_tensors(lambda tensor: tensor.to(device), tree)


def are_finite(tree: Tree) -> bool:
    """Whether no floating-point number in a tree is inf or nan."""
    return all(bool(torch.isfinite(t).all()) for t in tensors(tree) if t.is_floating_point())


def are_equal(one: Tree, other: Tree) -> bool:
    """Whether two trees hold the same numbers in the same order; NaN equals NaN."""
    pairs = list(zip_longest(tensors(one), tensors(other)))
    return all(a is not None and b is not None and a.shape == b.shape for a, b in pairs) and all(
        bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs
    )


def describe(tree: Any) -> str:
    """Say what a tree holds, e.g. `shape (8, 3) and type float32`, or `{image: shape ..., age: shape ...}`."""
    if isinstance(tree, Tensor):
        return f"shape {tuple(tree.shape)} and type {str(tree.dtype).removeprefix('torch.')}"
    if isinstance(tree, Mapping):
        return f"{{{', '.join(f'{name}: {describe(branch)}' for name, branch in tree.items())}}}"
    if isinstance(tree, tuple | list):
        return f"({', '.join(map(describe, tree))})"
    return f"a {type(tree).__name__}"
