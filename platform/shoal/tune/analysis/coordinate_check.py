"""The coordinate check of a parametrization: how far activations move in a few steps, at several widths.

Under muP every activation moves by about as much at any width; under another parametrization some move more, or
less, by a power of the width (Yang et al. 2022, "Tensor Programs V", section D.1 and Figure 5).
It trains by the loop's own `update`. Knows training loops; does not know how they came to be.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.data.loader import Batch
from shoal.data.tree import select_rows
from shoal.models.call import call_model
from shoal.plots.figure import new_panels
from shoal.training.clock import Clock
from shoal.training.loop import TrainingLoop, update

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Largest |exponent| that passes. In the limit exponents are multiples of 1/2. Measured over an eightfold width or
# more, on MLPs, a convolutional network and transformers, under Adam and SGD: muP 0.03 to 0.28 (below 0: an
# output of an untrained output layer falls as width^-1/2), standard 0.48 to 1.32.
TOLERANCE = 0.35

ROOT = "model"
WATCHED = 32  # samples whose activations are compared: every module's are held since step 0
NOISE = 0  # seed of whatever a forward pass draws
MAX_PANELS = 5


@dataclass(frozen=True)
class Coordinate:
    """The mean size of one entry of a module's output, and how far it has moved since step 0."""

    width: int
    seed: int
    step: int  # optimizer steps made; 0 is the initialization
    module: str
    size: float  # mean |x_t|
    change: float  # mean |x_t - x_0|


@dataclass(frozen=True)
class CoordinateVerdict:
    """Whether activations move alike at every width, and the module that is farthest from it."""

    passes: bool
    module: str
    exponent: float

    def __str__(self) -> str:
        effect = "keeps its scale" if self.passes else "depends on the width"
        return f"training {effect}: the output of {self.module} changes by width^{self.exponent:.2f}"


def coordinate_check(
    loop_at: Callable[[int, int], TrainingLoop],
    batches: Sequence[Batch],
    widths: Sequence[int],
    steps: int = 4,
    seeds: Sequence[int] = (0,),
    tell: Callable[[int], None] = lambda width: None,
) -> list[Coordinate]:
    """Train on the same batches at each width; compare every module's output before each step and after the last.

    The outputs are those of the first samples of the first batch. Every forward pass draws the same noise, since
    dropout's would count as change.

    Args:
        loop_at: makes the training loop of a width and a seed.
        batches: one a step, over again when they are fewer.
        widths: two or more.
        steps: optimizer steps at each width.
        seeds: one model of each width per seed.
        tell: called with each width once it is trained.
    """
    records: list[Coordinate] = []
    for width in widths:
        for seed in seeds:
            outputs = _outputs(loop_at(width, seed), batches, steps)
            records += [Coordinate(width, seed, *output) for output in outputs]
        tell(width)
    return records


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


def verdict(exponents: Mapping[str, float], tolerance: float = TOLERANCE) -> CoordinateVerdict:
    """Judge by the exponent that is farthest from 0: above it training blows up with width, below it stalls."""
    worst = max(exponents, key=lambda module: abs(exponents[module]))
    return CoordinateVerdict(abs(exponents[worst]) <= tolerance, worst, exponents[worst])


def coordinate_figure(records: Sequence[Coordinate], exponents: Mapping[str, float], title: str) -> "Figure":
    """Draw mean |x_t| and mean |x_t - x_0| against the width, a line per step.

    A panel per module, of those with the exponents farthest from 0; one that passes on the output of another has
    its exponent, and no panel.
    """
    import matplotlib

    first = {exponent: module for module, exponent in reversed(list(exponents.items()))}
    farthest = sorted(first, key=abs, reverse=True)[:MAX_PANELS]
    shown = [module for module in exponents if module in {first[exponent] for exponent in farthest}]
    steps = sorted({record.step for record in records})
    colors = matplotlib.colormaps["viridis"]([0.85 * step / max(steps[-1], 1) for step in steps])
    figure, panels = new_panels(title, 2, len(shown))
    for module, (above, below) in zip(shown, panels.T, strict=True):
        for step, color in zip(steps, colors, strict=True):
            style = {"color": color, "marker": "o", "markersize": 3, "label": f"{step}"}
            above.plot(*_by_width(records, module, step, "size"), **style)
            if step:
                below.plot(*_by_width(records, module, step, "change"), **style)
        above.set_title(f"{module}: width^{exponents[module]:.2f}", fontsize=9)
        below.set_xlabel("width")
    for axes in panels.flat:
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(widths := sorted({record.width for record in records}), [f"{w}" for w in widths])
        axes.set_xticks([], minor=True)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("mean |x_t|")
    panels[1, 0].set_ylabel("mean |x_t - x_0|")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", title="steps")
    return figure


def _by_width(
    records: Sequence[Coordinate], module: str, step: int, what: str
) -> tuple[list[int], list[float]]:
    """Return the widths and the mean over seeds of a size or change, where it is finite and not 0."""
    values: dict[int, list[float]] = defaultdict(list)
    for record in records:
        value = getattr(record, what)
        if (record.module, record.step) == (module, step) and 0.0 < value < math.inf:
            values[record.width].append(value)
    return list(values), [sum(found) / len(found) for found in values.values()]


def _outputs(
    loop: TrainingLoop, batches: Sequence[Batch], steps: int
) -> Iterator[tuple[int, str, float, float]]:
    """Train; yield step, module, size and change."""
    watched, start = select_rows(batches[0].inputs, slice(0, WATCHED)), dict[str, Tensor]()
    for step in range(steps + 1):
        with torch.no_grad(), _same_noise(), _watched(loop.model) as seen:
            call_model(loop.model, watched)
        for module, calls in seen.items():
            x = torch.cat(calls)
            x_0 = start.setdefault(module, x)
            yield step, module, _mean_size(x), _mean_size(x - x_0)
        if step < steps:
            with _same_noise():
                update(loop, batches[step % len(batches)], step, Clock())


@contextlib.contextmanager
def _same_noise() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(NOISE)
        yield


def _mean_size(x: Tensor) -> float:
    return x.abs().mean(dtype=torch.float64).item()


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Gather the flattened outputs of each module's calls."""
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            seen[name].append(output.detach().float().flatten().clone())

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
