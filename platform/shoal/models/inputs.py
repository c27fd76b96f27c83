"""Stored rows become what a model takes: a view of batches that is the same for every epoch.

A row of one array is stored as it is, or narrow (`shoal.data.widen`); a row of several is unpacked. A model whose
forward names `lengths`, or `NAME_lengths` for the field NAME, receives how many entries of a padded array are its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shoal.config import import_path
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.template import Template, fill
from shoal.data.tree import Tree, describe, only_tensor, row_count, tensors
from shoal.data.weights import with_weights, without_weights
from shoal.data.widen import Widen
from shoal.errors import DataError, UserError
from shoal.models.call import Parameters, are_keywords, are_positional, forward_parameters

LENGTHS = "lengths"
View = Callable[[Batch, int | None], Batch]
Find = Callable[[str, str], Callable[..., Any]]


def view_of_rows(transform: Transform, model: nn.Module, find: Find = import_path.find) -> View:
    """Return the view of the batches that a transform stores.

    Args:
        model: whose forward says which lengths it takes.
        find: imports `data.collate`.

    Raises:
        UserError: `data.collate` cannot be imported.
    """
    view = _view_of_targets(transform, model, find)
    return view if transform.weight is None else _Weighted(transform, view)


def _view_of_targets(transform: Transform, model: nn.Module, find: Find) -> View:
    if transform.collate is not None:
        return _Collated(_Unpack(transform), transform.collate, find(transform.collate, "data.collate"))
    if transform.input_tree is None and transform.target_tree is None:
        return Widen(transform)
    return _Padded(_Unpack(transform), forward_parameters(model))


def sample_like(transform: Transform, model: nn.Module, rows: int = 1) -> Tree:
    """Return rows of zeros in the shapes and types in which a model receives those of a transform."""
    if transform.input_tree is not None:
        stored = transform.packing().blank(rows)
    else:
        first = transform.columns[0]
        is_whole = first.kind == "ready" and (first.dtype.startswith("int") or first.dtype == "uint16")
        stored = torch.zeros((rows, *transform.input_shape), dtype=torch.int64 if is_whole else torch.float32)
    return view_of_rows(transform, model)(Batch(stored, blank_targets(transform, rows), rows), None).inputs


def blank_targets(transform: Transform, rows: int) -> Tensor:
    """Return stored targets for rows that have none: zeros."""
    if transform.target_tree is not None:
        targets = transform.packing(is_target=True).blank(rows)
    else:
        targets = torch.zeros(rows, dtype=_dtype(transform))
    if transform.weight is None:
        return targets
    return torch.from_numpy(with_weights(targets.numpy(), np.ones(rows)))


def _dtype(transform: Transform) -> torch.dtype:
    """Return the type of targets that are one number each."""
    return torch.int64 if transform.label.classes else torch.float32


class _Weighted:
    """Batches with the weights that are stored behind their targets."""

    def __init__(self, transform: Transform, view: View) -> None:
        is_packed = transform.target_tree is not None or not transform.has_label
        self._dtype, self._view = None if is_packed else _dtype(transform), view

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        targets, weights = without_weights(only_tensor(batch.targets), self._dtype)
        return self._view(replace(batch, targets=targets, weights=weights), epoch)


class _Arrays(NamedTuple):
    """The arrays of a batch in their trees, and how many entries of each ragged column are its own [n]."""

    inputs: Tree
    targets: Tree
    lengths: dict[str, Tensor]


class _Unpack:
    """From stored rows to arrays."""

    def __init__(self, transform: Transform) -> None:
        self._widen = Widen(transform)
        self.input_tree, self._inputs = transform.input_tree, transform.packing()
        self.target_tree, self._targets = transform.target_tree, transform.packing(is_target=True)

    def __call__(self, batch: Batch) -> _Arrays:
        inputs, targets = self._widen(batch, None).inputs, batch.targets
        lengths: dict[str, Tensor] = {}
        if self.input_tree is not None:
            found, lengths = self._inputs.unpack(only_tensor(inputs))
            inputs = fill(self.input_tree, found.__getitem__)
        if self.target_tree is not None:
            found, of_targets = self._targets.unpack(only_tensor(targets))
            targets, lengths = fill(self.target_tree, found.__getitem__), lengths | of_targets
        return _Arrays(inputs, targets, lengths)


class _Padded:
    """Arrays as they are stored: all rows padded to the longest of the data."""

    def __init__(self, unpack: _Unpack, parameters: Parameters) -> None:
        self._unpack, self._parameters = unpack, parameters

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        inputs, targets, lengths = self._unpack(batch)
        tree = self._unpack.input_tree
        if lengths and tree is not None:
            inputs = with_lengths(tree, inputs, lengths, self._parameters)
        return replace(batch, inputs=inputs, targets=targets)


class _Collated:
    """Batches that a user's own function makes of samples, each array as long as it was.

    Which worker has a row, and which others it has, must not change what the function makes of it.
    """

    def __init__(self, unpack: _Unpack, path: str, collate: Callable[..., Any]) -> None:
        self._unpack, self._path, self._collate = unpack, path, collate

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        inputs, targets, lengths = self._unpack(batch)
        ends = {name: found.tolist() for name, found in lengths.items()}
        samples = [
            (
                _sample(self._unpack.input_tree, inputs, row, ends),
                _sample(self._unpack.target_tree, targets, row, ends),
            )
            for row in range(row_count(batch.inputs))
        ]
        inputs, targets = self._collated(samples)
        return replace(batch, inputs=inputs, targets=targets)

    def _collated(self, samples: list[Any]) -> tuple[Tree, Tree]:
        """Call the function and check what it returns.

        Raises:
            DataError: it raises, or returns something other than trees of tensors of as many rows.
        """
        name, count = f"data.collate='{self._path}'", len(samples)
        try:
            found = self._collate(samples)
        except UserError:
            raise
        except Exception as error:
            raise DataError(
                f"{name} raised {type(error).__name__} for {count} samples: {error}: it receives a list of (inputs, "
                "target), tensors as the data set returns them"
            ) from error
        if not (isinstance(found, tuple | list) and len(found) == 2):
            raise DataError(f"{name} returned {describe(found)}: return a pair (inputs, targets) of tensors")
        for part in found:
            wrong = next((one for one in tensors(part) if not (isinstance(one, Tensor) and one.ndim)), None)
            if wrong is not None:
                raise DataError(f"{name} returned {describe(part)}: all in it must be tensors [{count}, ...]")
            lengths = {len(tensor) for tensor in tensors(part)}
            if lengths != {count}:
                raise DataError(
                    f"{name} returned {describe(part)} for {count} samples: every tensor must have the samples in "
                    "dimension 0, since batches are divided there"
                )
        return found[0], found[1]


def _sample(tree: Template | None, arrays: Any, row: int, ends: Mapping[str, list[int]]) -> Any:
    """Return one row of arrays, each as long as it was."""
    if tree is None:
        return arrays[row]
    if isinstance(tree, str):
        return arrays[row][: ends[tree][row]] if tree in ends else arrays[row]
    if isinstance(tree, dict):
        return {name: _sample(branch, arrays[name], row, ends) for name, branch in tree.items()}
    return tuple(_sample(branch, part, row, ends) for branch, part in zip(tree, arrays, strict=True))


def with_lengths(tree: Template, inputs: Any, lengths: Mapping[str, Tensor], parameters: Parameters) -> Tree:
    """Return inputs with the lengths that a forward takes, which are passed by name; `inputs` itself: it takes none."""
    taken = [parameter.name for parameter in parameters]
    if isinstance(tree, dict):
        branches, parts = tree, dict(inputs)
    elif isinstance(tree, str):
        branches, parts = {taken[0]: tree}, {taken[0]: inputs}
    elif are_positional(inputs, parameters):
        branches, parts = (dict(zip(taken, some, strict=False)) for some in (tree, inputs))
    else:
        return inputs  # type: ignore[no-any-return]
    found = {name: lengths[of] for name, of in branches.items() if isinstance(of, str) and of in lengths}
    offered = {f"{name}_{LENGTHS}": value for name, value in found.items()}
    if isinstance(tree, dict) and not are_keywords(parts, parameters):
        return _added(parts, offered)  # forward takes the dict as it is
    if len(found) == 1:
        offered[LENGTHS] = next(iter(found.values()))
    wanted = {name: value for name, value in offered.items() if name in taken}
    return _added(parts, wanted) if wanted else inputs  # type: ignore[no-any-return]


def _added(parts: dict[str, Tree], lengths: Mapping[str, Tensor]) -> Tree:
    """Return parts and lengths; a part of the same name is the user's own."""
    return parts | {name: value for name, value in lengths.items() if name not in parts}
