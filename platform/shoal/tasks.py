"""What is learnt: the loss of a batch, and the sums from which metrics are made.

A task works on sums over samples, so that workers' sums add up to the whole. Tasks on text are in `shoal.language`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.augment import augment
from shoal.data.config import DataConfig
from shoal.data.shard import Batch
from shoal.data.tokenizer import tokenizer_from_json
from shoal.data.transform import Transform
from shoal.errors import ModelError
from shoal.language import CausalLM, MaskedLM, row_keys

TaskName = Literal[
    "classification",
    "regression",
    "causal_lm",
    "masked_lm",
    "sequence_classification",
    "image_classification",
]

# Learnt from the text itself: there is no label.
LANGUAGE = ("causal_lm", "masked_lm")
ON_TEXT = (*LANGUAGE, "sequence_classification")

# What each task reports of the validation split; the first is what is minimised.
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("loss", "accuracy"),
    "regression": ("loss", "rmse", "mae", "r2"),
    "causal_lm": ("loss", "accuracy", "perplexity", "bits_per_byte"),
    "masked_lm": ("loss", "accuracy", "perplexity", "bits_per_byte"),
    "sequence_classification": ("loss", "accuracy"),
    "image_classification": ("loss", "accuracy"),
}

# Numbers of inputs that are evaluated at a time, and rows.
MAX_INPUTS, MAX_ROWS = 1 << 24, 1024

# Beyond this many classes a confusion matrix is no picture any more, and its square is too large to reduce.
MAX_CONFUSION = 1000


class Task(Protocol):
    """What the loop asks of a task."""

    name: str

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the samples' losses, float32 or better."""
        ...

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return a float64 vector of sums over the batch's samples; element 0 counts them."""
        ...

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all samples into named means."""
        ...

    @property
    def sums_size(self) -> int: ...

    @property
    def view(self) -> "View | None":
        """Makes what the model is given of a batch as it is stored; None: nothing is to be made."""
        ...

    @property
    def held_out_rows(self) -> int:
        """How many rows are evaluated at a time."""
        ...


# Of a batch and the epoch that it is trained in, or None where it is held out.
View = Callable[[Batch, int | None], Batch]


class Classification:
    """One class out of several: cross entropy, accuracy, confusion counts."""

    name = "classification"
    held_out_rows = MAX_ROWS

    def __init__(self, classes: int, view: View | None = None) -> None:
        self.classes, self.view = classes, view
        self._cells = classes**2 if classes <= MAX_CONFUSION else 0

    @property
    def sums_size(self) -> int:
        return 3 + self._cells

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if outputs.shape != (len(batch.targets), self.classes):
            raise ModelError(
                f"the model put out {tuple(outputs.shape)} for {len(batch.targets)} samples of {self.classes} "
                f"classes: it must put out {(len(batch.targets), self.classes)}; its builder is given `outputs`"
            )
        # In float64: near p = 1 the float32 logarithm cancels, and its noise would tell worker counts apart.
        return F.cross_entropy(outputs.double(), batch.targets, reduction="sum")

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        predicted = outputs.argmax(dim=1)
        head = torch.stack(
            [
                torch.tensor(float(len(batch.targets)), dtype=torch.float64, device=outputs.device),
                self.loss(outputs, batch).double(),
                (predicted == batch.targets).sum().double(),
            ]
        )
        if not self._cells:
            return head
        cells = torch.bincount(batch.targets * self.classes + predicted, minlength=self._cells)
        return torch.cat([head, cells.double()])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        count, loss, correct = sums[:3].tolist()
        return {"loss": loss / count, "accuracy": correct / count}

    def confusion(self, sums: Tensor) -> Tensor | None:
        """Return [true class, predicted class] counts."""
        return sums[3:].view(self.classes, self.classes).long() if self._cells else None


class Regression:
    """One number: squared error on standardised targets, errors reported in the label's own unit."""

    name = "regression"
    sums_size = 5
    view = None
    held_out_rows = MAX_ROWS

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if outputs.numel() != len(batch.targets):
            raise ModelError(
                f"the model put out {tuple(outputs.shape)} for {len(batch.targets)} samples of one number: "
                f"it must put out {(len(batch.targets), 1)}; its builder is given `outputs`"
            )
        return F.mse_loss(outputs.reshape(-1).double(), batch.targets.double(), reduction="sum")

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = batch.targets.double()
        error = outputs.reshape(-1).double() - targets
        count = torch.tensor(float(len(targets)), dtype=torch.float64, device=outputs.device)
        return torch.stack([count, (error**2).sum(), error.abs().sum(), targets.sum(), (targets**2).sum()])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        count, squared, absolute, total, total_squared = sums.tolist()
        spread = total_squared - total**2 / count
        return {
            "loss": squared / count,
            "rmse": self.scale * (squared / count) ** 0.5,
            "mae": self.scale * absolute / count,
            "r2": 1.0 - squared / spread if spread > 0 else float("nan"),
        }


def make_task(name: TaskName, transform: Transform, data: DataConfig, seed: int) -> Task:
    """Build the task a config names."""
    match name:
        case "regression":
            return Regression(transform.label.std)
        case "causal_lm" | "masked_lm":
            assert transform.tokenizer is not None
            kind = CausalLM if name == "causal_lm" else MaskedLM
            return kind(tokenizer_from_json(transform.tokenizer), transform.input_shape[0], seed)
        case "sequence_classification":
            return Classification(transform.outputs, _as_tokens)
        case "image_classification":
            task = Classification(transform.outputs, Augmented(data.flip, data.pad, seed))
            task.held_out_rows = max(1, min(MAX_ROWS, MAX_INPUTS // math.prod(transform.input_shape)))
            return task
        case _:
            return Classification(transform.outputs)


def _as_tokens(batch: Batch, epoch: int | None) -> Batch:
    return replace(batch, inputs=batch.inputs.long())


@dataclass(frozen=True)
class Augmented:
    """Views of images in training: mirrored and moved at random, by their content, the epoch and the seed."""

    flip: bool
    pad: int
    seed: int

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        if epoch is None or not (self.flip or self.pad):
            return batch
        keys = row_keys(batch.inputs.contiguous().view(torch.int32).long(), self.seed).cpu().numpy()
        images = augment(batch.inputs, keys, epoch, self.seed, self.flip, self.pad)
        return replace(batch, inputs=images)


def per_class(confusion: Tensor) -> Mapping[str, list[float]]:
    """Return precision, recall and support of each class; 0 where nothing was predicted or there."""
    counts = confusion.double()
    hit = counts.diagonal()
    support, predicted = counts.sum(dim=1), counts.sum(dim=0)
    return {
        "precision": (hit / predicted.clamp(min=1)).tolist(),
        "recall": (hit / support.clamp(min=1)).tolist(),
        "support": support.tolist(),
    }
