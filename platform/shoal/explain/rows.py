"""The labelled rows that are explained: features, labels, outputs and losses, and the raw values they came from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.data.loader import Batch
from shoal.data.misfits import Misfits
from shoal.data.sources.base import Block
from shoal.data.template import fill
from shoal.data.tree import Tree
from shoal.data.weights import without_weights
from shoal.errors import ConfigError
from shoal.explain.subject import Subject
from shoal.inference.predictor import Predictor
from shoal.tasks.custom import Custom


@dataclass(frozen=True, eq=False)
class Features:
    """Rows as a model takes them.

    Attributes:
        block: raw columns.
        inputs: [n, ...] features or token ids.
        labels: as a loss takes them.
    """

    block: Block
    inputs: Tensor
    labels: Tree

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows and what the model makes of them.

    Attributes:
        outputs: float64 [n, outputs], as the subject returns them.
        losses: float64 [n], of each row.
        targets: [n], the output of each that is explained.
    """

    features: Features
    outputs: Tensor
    losses: Tensor
    targets: Tensor

    @property
    def inputs(self) -> Tensor:
        return self.features.inputs

    def __len__(self) -> int:
        return len(self.inputs)


def read_features(predictor: Predictor, blocks: Iterable[Block]) -> Features | None:
    """Return the features and labels of raw rows; None: there are no rows.

    Raises:
        DataError: a column or the label is missing, unknown or mostly unreadable.
    """
    transform = predictor.transform
    parts, misfits = [], Misfits(transform)
    for block in blocks:
        if len(next(iter(block.values()))):
            misfits.add(block)
            misfits.check()
            inputs, labels = transform.features(block), transform.targets(block)
            parts.append((block, torch.from_numpy(inputs), torch.from_numpy(labels)))
    if not parts:
        return None
    blocks_, inputs_, labels_ = zip(*parts, strict=True)
    joined = {name: np.concatenate([block[name] for block in blocks_]) for name in blocks_[0]}
    rows = torch.cat(inputs_)
    rows = rows.long() if transform.tokenizer is not None else rows
    return Features(joined, rows, _labels(predictor, rows, torch.cat(labels_)))


def _labels(predictor: Predictor, inputs: Tensor, stored: Tensor) -> Tree:
    """Return labels as a loss takes them: without weights, in their trees."""
    transform = predictor.transform
    is_packed = transform.target_tree is not None or not transform.has_label
    if transform.weight is not None:
        dtype = torch.int64 if transform.label.classes else torch.float32
        stored, _ = without_weights(stored, None if is_packed else dtype)
    if transform.target_tree is not None:
        found, _ = transform.packing(is_target=True).unpack(stored)
        labels: Tree = fill(transform.target_tree, found.__getitem__)
    elif predictor.task.name == Custom.name:
        return inputs.clone()  # which the model is to return
    else:
        return stored  # [n, 0] of a language model
    batch = Batch(inputs, labels, count=len(inputs))
    return predictor.task.view(batch, None).targets if predictor.task.view else labels


def answer(subject: Subject, features: Features, target: Any = None) -> Rows:
    """Run the model on rows.

    Args:
        target: the class, label or output that is explained, as `explain.target` names it; None: the one that is
            likeliest for each row.

    Raises:
        ConfigError: there is no such class, label or output, or only one number is predicted.
    """
    outputs = subject.run(features.inputs)
    losses = subject.losses(features.inputs, features.labels)
    return Rows(features, outputs, losses, subject.answers.targets(target, outputs))


def choose(chosen: Sequence[int], worst: int, random: int, losses: Tensor, seed: int) -> dict[int, str]:
    """Return numbers of rows, and why each is among them: chosen, worst or random.

    Raises:
        ConfigError: a chosen row is not among those that were read.
    """
    count = len(losses)
    wrong = [row for row in chosen if not 0 <= row < count]
    if wrong:
        raise ConfigError(
            f"explain.rows names row {wrong[0]}, and {count} rows were read: write numbers from 0 to {count - 1}, "
            "or read more with explain.sample"
        )
    found = dict.fromkeys(chosen, "chosen")
    for row in losses.argsort(descending=True)[:worst].tolist():
        found.setdefault(row, "worst")
    left = [row for row in np.random.default_rng(seed).permutation(count).tolist() if row not in found]
    return found | dict.fromkeys(left[:random], "random")
