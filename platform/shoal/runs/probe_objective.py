"""What a loss or a metric of the user's would raise, or get wrong over several workers, found on a few rows."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shoal.data.loader import Batch
from shoal.data.tree import Tree, describe, only_tensor
from shoal.errors import ConfigError, UserError, nearest
from shoal.runs.config import RunConfig
from shoal.tasks.base import Task
from shoal.tasks.measures import Measure
from shoal.tasks.outputs import described
from shoal.tasks.own_loss import are_one_number

SAME = {"rel_tol": 1e-4, "abs_tol": 1e-6}

logger = logging.getLogger(__name__)


def check_objective(
    task: Task, outputs_of: Callable[[Batch], Any], batch: Batch, parts: Sequence[Batch]
) -> list[str]:
    """Compute losses and metrics of rows as evaluation will, with one process and with two; return their names.

    Args:
        outputs_of: the model in eval mode.
        batch: some rows.
        parts: the same rows as two batches, of the first and of the others.

    Raises:
        UserError: the loss or a metric cannot be computed, or two processes measure something else than one.
    """
    outputs, halves = outputs_of(batch), [outputs_of(part) for part in parts]
    check_losses(task, outputs, batch)
    if task.own_loss is not None:
        _warn_of_neighbours(task, (outputs, batch), (halves[0], parts[0]))
    found = dict(task.metrics(task.sums(outputs, batch)))
    for measure in task.measures:
        found |= _measure(measure, halves, parts)
    return list(found)


def check_compared(config: RunConfig, names: Sequence[str], more: Sequence[tuple[str, str]]) -> None:
    """Check the metrics that decide something: when training ends, which weights and which trial are best.

    Args:
        names: of what a split is measured by.
        more: besides those of the config, each with the key that names it.

    Raises:
        ConfigError: there is no such metric, or nothing says whether a higher value is better.
    """
    known = [f"val/{name}" for name in names]
    for key, metric in (*config.compared, *more):
        if metric not in known:
            raise ConfigError(
                f"{key} names '{metric}'{nearest(metric, known)}: this {config.task} reports {', '.join(known)}"
            )
    for key, metric in config.compared:
        if not config.has_direction(metric):
            name = metric.rpartition("/")[2]
            raise ConfigError(
                f"{key} names '{metric}', and nothing says whether a higher value is better: write "
                f"{name}.higher_is_better = True, or False, below the function or in the class"
            )


def check_losses(task: Task, outputs: Any, batch: Batch) -> None:
    """Compute the losses of rows.

    Raises:
        UserError: it cannot be done, or one is inf or NaN.
    """
    key = task.own_loss.key if task.own_loss else f"the loss of task={task.name}"
    with _naming(key, outputs, batch.targets):
        losses = task.sample_losses(outputs, batch)
        task.loss(outputs, batch)
    for name, loss in losses.items():
        if task.own_loss is not None and not torch.isfinite(loss).all():
            what = "" if len(losses) == 1 else f" for '{name}'"
            raise ConfigError(
                f"{key} returned {_odd(loss)}{what} before the first step, for outputs of {described_tree(outputs)}: "
                "look for a logarithm of 0, a division by zero or outputs that are not finite"
            )


def _odd(loss: Tensor) -> float:
    return float(loss.flatten()[~torch.isfinite(loss.flatten())][0])


def _measure(measure: Measure, outputs: Sequence[Any], parts: Sequence[Batch]) -> dict[str, float]:
    """Return what a metric makes of rows, the same for one process and for two."""
    device = torch.device("cpu")
    alone, workers = measure.fresh(device), [measure.fresh(device) for _ in parts]
    key = f"train.metrics='{measure.name}'" if measure.name else "the loss"
    for worker, output, part in zip(workers, outputs, parts, strict=True):
        with _naming(key, output, part.targets):
            alone.add(output, part)
            worker.add(output, part)
    expected, merged = alone.results(), measure.fresh(device)
    with _naming(f"{key}, whose states of two workers are merged,", outputs[0], parts[0].targets):
        merged.merge([worker.state() for worker in workers])
        results = merged.results()
    for name, value in expected.items():
        other = results.get(name, math.nan)
        if not (math.isclose(value, other, **SAME) or (math.isnan(value) and math.isnan(other))):
            raise ConfigError(
                f"{key} is {value:.6g} of rows that one worker holds, and {other:.6g} of the same rows on two: give "
                "each of its states the dist_reduce_fx by which it is added up (add_state(..., dist_reduce_fx='sum'))"
            )
    return expected


def _warn_of_neighbours(task: Task, whole: tuple[Any, Batch], part: tuple[Any, Batch]) -> None:
    """Say that a loss of a row depends on the rows beside it, which each worker has others of.

    Raises:
        ConfigError: by a mistake in shapes.
    """
    if not _are_alike(task.sample_losses(*whole), task.sample_losses(*part)):
        _refuse_broadcast(task, whole, part)
        logger.warning(
            "%s: the loss of a row depends on the rows beside it, and the result on the number of workers and on how "
            "many rows are computed at a time",
            task.own_loss.key if task.own_loss else "the loss",
        )


@contextmanager
def _naming(key: str, outputs: Any, targets: Tree) -> Iterator[None]:
    """Name the user's function, what it got, and what it raised."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{key} raised {type(error).__name__}: {' '.join(str(error).split())}; its outputs were "
            f"{described_tree(outputs)}, its targets {describe(targets)}"
        ) from error


def described_tree(outputs: Any) -> str:
    """Describe what a model returned."""
    if isinstance(outputs, Tensor):
        return describe(outputs)
    if isinstance(outputs, Mapping):
        return "{" + ", ".join(f"{name}: {described_tree(value)}" for name, value in outputs.items()) + "}"
    if isinstance(outputs, tuple | list):
        return f"({', '.join(map(described_tree, outputs))})"
    return described(outputs)


def _refuse_broadcast(task: Task, whole: tuple[Any, Batch], part: tuple[Any, Batch]) -> None:
    """Refuse a loss that compares each output with all targets by mistake: given equal shapes, it does not.

    Raises:
        ConfigError: it does.
    """
    if not are_one_number(whole[0], whole[1].targets):
        return
    shape, key = tuple(whole[0].shape), task.own_loss.key if task.own_loss else "the loss"
    for reshaped in (_with_flat_outputs, _with_targets_in_a_column):
        try:
            together, alone = (task.sample_losses(*reshaped(*rows)) for rows in (whole, part))
        except Exception:  # whatever the user's function raises for another shape
            continue
        if _are_alike(together, alone):
            raise ConfigError(
                f"{key} compares each output with the targets of all rows: outputs of shape {shape} and targets of "
                f"shape {shape[:1]} broadcast to {shape[:1] * 2}; compare outputs.squeeze(1) with targets, or outputs "
                "with targets[:, None]"
            )


def _with_flat_outputs(outputs: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return outputs.squeeze(1), batch


def _with_targets_in_a_column(outputs: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return outputs, replace(batch, targets=only_tensor(batch.targets)[:, None])


def _are_alike(together: dict[str, Tensor], alone: dict[str, Tensor]) -> bool:
    """Whether the losses of the first rows are the same without the others."""
    return all(
        torch.allclose(together[name][: len(losses)], losses, rtol=1e-4, atol=1e-5)
        for name, losses in alone.items()
    )
