"""The labelled rows that are explained: features, labels, outputs and losses, and the raw values they came from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.config.loading import read
from shoal.data.misfits import Misfits
from shoal.data.preprocessing import Transform
from shoal.data.sources.base import Block
from shoal.data.weights import without_weights
from shoal.errors import ConfigError, nearest
from shoal.explain.subject import Answers, Subject


@dataclass(frozen=True, eq=False)
class Features:
    """Rows as a model takes them.

    Attributes:
        block: raw columns.
        inputs: [n, ...] features or token ids.
        labels: [n], numbers of classes, or standardized values; of several labels [n, labels], 1 or 0.
    """

    block: Block
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows and what the model makes of them.

    Attributes:
        labels: [n], numbers of classes, or values in their unit less the mean; of several labels [n, labels], 1 or 0.
        outputs: float64 [n, outputs], as the subject returns them.
        losses: float64 [n], cross entropy (of several labels the mean) or squared error.
        targets: [n], the output of each that is explained.
    """

    features: Features
    labels: Tensor
    outputs: Tensor
    losses: Tensor
    targets: Tensor
    answers: Answers

    @property
    def inputs(self) -> Tensor:
        return self.features.inputs

    def __len__(self) -> int:
        return len(self.inputs)


def read_features(transform: Transform, blocks: Iterable[Block]) -> Features | None:
    """Return the features and labels of raw rows; None: there are no rows.

    Raises:
        DataError: a column or the label is missing, unknown or mostly unreadable.
    """
    parts, misfits = [], Misfits(transform)
    for block in blocks:
        if len(next(iter(block.values()))):
            misfits.add(block)
            misfits.check()
            parts.append((block, *_arrays(transform, block)))
    if not parts:
        return None
    blocks_, inputs, labels = zip(*parts, strict=True)
    joined = {name: np.concatenate([block[name] for block in blocks_]) for name in blocks_[0]}
    return Features(joined, torch.cat(inputs), torch.cat(labels))


def _arrays(transform: Transform, block: Block) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(transform.features(block))
    labels = torch.from_numpy(transform.targets(block))  # [n, 0] of a language model
    if transform.target_tree is not None:
        found, _ = transform.packing(is_target=True).unpack(labels)
        labels = torch.cat([part.reshape(len(part), -1) for part in found.values()], dim=1).double()
        return inputs, labels
    if transform.weight is not None:
        labels, _ = without_weights(labels, torch.int64 if transform.label.classes else torch.float32)
    return (inputs.long() if transform.tokenizer is not None else inputs), labels


def answer(subject: Subject, features: Features, target: int | None) -> Rows:
    """Run the model on rows.

    Args:
        target: the class or label that is explained; None: the one that is likeliest for each row.
    """
    outputs = subject.run(features.inputs)
    labels = features.labels.double() * subject.scale if subject.answers == "number" else features.labels
    chosen = outputs.argmax(dim=1) if target is None else torch.full((len(outputs),), target)
    losses = losses_of(outputs, labels, subject.answers)
    return Rows(features, labels, outputs, losses, chosen, subject.answers)


def losses_of(outputs: Tensor, labels: Tensor, answers: Answers) -> Tensor:
    """Return the loss of each row [n]: cross entropy, or squared error in the unit of the label."""
    if answers == "labels":
        losses = F.binary_cross_entropy_with_logits(outputs.double(), labels, reduction="none")
        return losses.mean(dim=1)
    if answers == "class":
        return F.cross_entropy(outputs.double(), labels, reduction="none")
    return (outputs[:, 0] - labels).square()


def shown_of(outputs: Tensor, answers: Answers) -> Tensor:
    """Return what outputs [n, outputs] are shown as: probabilities, or the numbers themselves."""
    if answers == "labels":
        return outputs.sigmoid()
    return outputs.softmax(dim=1) if answers == "class" else outputs


def target_of(value: Any, outputs: Sequence[str], answers: Answers) -> int | None:
    """Return the number of a class or label by its name, or by what YAML reads its name as: `yes` is true.

    Raises:
        ConfigError: there is no such class, or a number is predicted.
    """
    if value is None:
        return None
    if answers == "number":
        raise ConfigError(
            f"explain.target={value}: the model predicts the number '{outputs[0]}', no classes: leave it out"
        )
    found = [name for name in outputs if name == str(value)] or [
        name for name in outputs if read(None, [f"name={name}"])["name"] is value
    ]
    if not found:
        one, several = ("label", "labels") if answers == "labels" else ("class", "classes")
        raise ConfigError(
            f"explain.target={value} is not a {one} of the model{nearest(str(value), outputs)}: "
            f"the {several} are {', '.join(outputs[:20])}{', ...' if len(outputs) > 20 else ''}"
        )
    return outputs.index(found[0])


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
