"""The coordinate check of a parametrisation: how far activations move in a few steps, at several widths.

Under muP every activation moves by about as much at any width; under another parametrisation some move more, or
less, by a power of the width (Yang et al. 2022, "Tensor Programs V", section D.1 and Figure 5).
Knows models and optimisers of torch; does not know how they came to be.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Largest |exponent| that passes. In the limit exponents are multiples of 1/2. Measured over an eightfold width or
# more, on MLPs, a convolutional network and transformers, under Adam and SGD: muP 0.03 to 0.28 (below 0: an
# untrained output layer puts out ever less, as width^-1/2), standard 0.48 to 1.32.
TOLERANCE = 0.35

ROOT = "model"


@dataclass(frozen=True)
class Coordinate:
    """The mean size of one entry of a module's output, and how far it has moved since step 0."""

    width: int
    seed: int
    step: int  # optimiser steps made; 0 is the initialisation
    module: str
    size: float  # mean |x_t|
    change: float  # mean |x_t - x_0|


@dataclass(frozen=True)
class Verdict:
    """Whether activations move alike at every width, and the module that is farthest from it."""

    passes: bool
    module: str
    exponent: float

    def __str__(self) -> str:
        way = "keeps its scale" if self.passes else "depends on the width"
        return f"training {way}: what {self.module} puts out changes by width^{self.exponent:.2f}"


def coordinate_check(
    build_at: Callable[[int, int], nn.Module],
    optimizer_for: Callable[[nn.Module], torch.optim.Optimizer],
    batch: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    widths: Sequence[int],
    steps: int = 4,
    seeds: Sequence[int] = (0,),
) -> list[Coordinate]:
    """Train on one batch at each width and note what every module puts out, before each step and after the last.

    Args:
        build_at: builds the model of a width from a seed; without dropout, whose noise would pass for change.
        optimizer_for: builds the optimiser of a model.
        batch: inputs [n, ...] and targets.
        loss: outputs and targets to a scalar.
        widths: two or more.
    """
    return [
        Coordinate(width, seed, *seen)
        for width in widths
        for seed in seeds
        for seen in _walk(build_at(width, seed), optimizer_for, batch, loss, steps)
    ]


def growth(records: Sequence[Coordinate]) -> dict[str, float]:
    """Return the exponent k of each module's change at the last step, change ~ width^k, by least squares on logs.

    It is inf where a change is not finite; modules whose output never changes are left out.
    """
    last = max(record.step for record in records)
    changes: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.step == last:
            changes[record.module][record.width].append(record.change)
    means = {
        module: {width: sum(values) / len(values) for width, values in by_width.items()}
        for module, by_width in changes.items()
    }
    return {module: _exponent(by_width) for module, by_width in means.items() if any(by_width.values())}


def verdict(exponents: Mapping[str, float], tolerance: float = TOLERANCE) -> Verdict:
    """Judge by the exponent that is farthest from 0: above it training blows up with width, below it stalls."""
    worst = max(exponents, key=lambda module: abs(exponents[module]))
    return Verdict(abs(exponents[worst]) <= tolerance, worst, exponents[worst])


def _walk(
    model: nn.Module,
    optimizer_for: Callable[[nn.Module], torch.optim.Optimizer],
    batch: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
) -> Iterator[tuple[int, str, float, float]]:
    """Yield step, module, size and change."""
    inputs, targets = batch
    optimizer, start = optimizer_for(model), dict[str, Tensor]()
    for step in range(steps + 1):
        with _watched(model) as seen:
            outputs = model(inputs)
        for module, calls in seen.items():
            x = torch.cat(calls)
            x_0 = start.setdefault(module, x)
            yield step, module, x.abs().mean().item(), (x - x_0).abs().mean().item()
        if step < steps:
            optimizer.zero_grad()
            loss(outputs, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Gather the flattened outputs of each module's calls."""
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            seen[name].append(output.detach().double().flatten().clone())

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name or ROOT: note(name, output))
        for name, module in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _exponent(changes: Mapping[int, float]) -> float:
    """Return the slope of log change over log width."""
    if not all(math.isfinite(change) for change in changes.values()):
        return math.inf
    widths = [math.log(width) for width in changes]
    logs = [math.log(max(change, 1e-300)) for change in changes.values()]
    mean_width, mean_log = sum(widths) / len(widths), sum(logs) / len(logs)
    shared = sum((w - mean_width) * (c - mean_log) for w, c in zip(widths, logs, strict=True))
    return shared / sum((w - mean_width) ** 2 for w in widths)
