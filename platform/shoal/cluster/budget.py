"""What a run would take, before there is any hardware: `python jobs/train.py --plan`.

It knows a config and how a person wants to read a budget; the budget itself is `shoal.models.budget`'s. Text is not
read: a vocabulary and a context are in the config. Other data are read as far as the checks before a run read them.
"""

from dataclasses import dataclass

import torch

from shoal.cluster.config import RunConfig
from shoal.cluster.plan import check_data
from shoal.console import duration, table
from shoal.data.tokenizer import vocabulary_of
from shoal.errors import ConfigError, DataError
from shoal.models import build, readable
from shoal.models.budget import ALONE, GIB, MFU, TENSOR_SIZE, TIMED_ON, Budget, Memory, Way, plan
from shoal.performance import peak_flops
from shoal.tasks import LANGUAGE, ON_TEXT
from shoal.train import total_steps


@dataclass(frozen=True)
class _Data:
    """What a model sees of the data."""

    sample: tuple[int, ...]
    outputs: int
    vocabulary: int
    steps: int | None  # of the whole training, where the number of rows is known or does not matter

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.vocabulary else torch.float32


def plan_of(config: RunConfig) -> Budget:
    """Return what training takes by a config, on as many workers as it says.

    Raises:
        UserError: the data cannot be looked at, or the model cannot be built from shapes alone.
    """
    return _plan(config, _data(config))


def report(config: RunConfig, mfu: float = MFU) -> str:
    """Return what a person wants to know of it.

    Args:
        mfu: share of the devices' peak that training reaches.

    Raises:
        UserError: as `plan_of`, or the share is none.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(
            f"--mfu={mfu:g}: it is the share of the devices' peak, above 0 and at most 1, e.g. 0.4"
        )
    data = _data(config)
    budget = _plan(config, data)
    parts = [_about(config, budget, data), _memory(config, budget), _time(config, budget, data, mfu)]
    return "\n\n".join([*parts, f"verdict  {verdict(budget)}"])


def verdict(budget: Budget) -> str:
    """Name the smallest device that holds it, under which strategies it does, and under which not."""
    choices = [memory for row in budget.rows for memory in (row.plain, row.checkpointed) if memory]
    size = min((memory.device for memory in choices if memory.device), default=None)
    if size is None:
        least = min(memory.total for memory in choices) / GIB
        return (
            f"fits no device, {least:,.0f} GiB at least: lower data.global_batch_size, or take more workers "
            "or a smaller model"
        )
    fits, fails = [], []
    for row in budget.rows:
        if _holds(size, row.plain):
            fits.append(row.strategy.name)
        elif row.checkpointed and _holds(size, row.checkpointed):
            fits.append(f"{row.strategy.name} with activation checkpointing")
        else:
            fails.append(row.strategy.name)
    under = f" under {_listed(fits, 'and')}" if budget.workers > 1 else fits[0].removeprefix(ALONE)
    return f"fits {size} GiB{under}" + (f"; not under {_listed(fails, 'or')}" if fails else "")


def _data(config: RunConfig) -> _Data:
    if config.task in ON_TEXT:
        vocabulary = vocabulary_of(config.data.tokenizer)
        outputs = vocabulary if config.task in LANGUAGE else 2  # the number of classes matters to nothing
        return _Data((config.data.context,), outputs, vocabulary, config.train.max_steps)
    checked = check_data(config)
    if checked.prepared is None:
        raise DataError(
            f"data.source='{config.data.source}' is too large to be looked at here: plan with a part of it, "
            "whose rows are of the same shape"
        )
    transform = checked.prepared.transform
    steps = total_steps(config.train, checked.prepared.lanes(checked.recipe).steps)
    return _Data(transform.input_shape, transform.outputs, transform.vocabulary, steps)


def _plan(config: RunConfig, data: _Data) -> Budget:
    # Another parametrisation has the same sizes, and is made from the weights' values.
    model = config.model.model_copy(update={"parametrization": "standard"})
    return plan(
        lambda: build(model, data.sample, data.outputs, config.seed, data.vocabulary, config.task),
        data.sample,
        data.dtype,
        Way(
            batch=config.data.global_batch_size,
            workers=max(1, config.scale.num_workers),
            precision=config.train.precision,
            optimizer=config.optim.name,
            piece=size if isinstance(size := config.train.micro_batch_size, int) else None,
            averages=config.train.ema is not None,
            tensor=config.scale.tp_size or TENSOR_SIZE,
        ),
    )


def _about(config: RunConfig, budget: Budget, data: _Data) -> str:
    count = budget.count
    parts = [f"{len(count.units)} blocks of {_span(count.units)}"] if budget.rows[0].checkpointed else []
    parts += [f"{readable(count.embedding).strip()} in embeddings"] if count.embedding else []
    per_token = budget.flops_per_sample / data.sample[0]
    tokens = f" ({readable(per_token)}FLOPs per token)" if data.vocabulary else ""
    return (
        f"model    {config.model.name}: {count.total:,} parameters{': ' if parts else ''}{', '.join(parts)}\n"
        f"work     {readable(budget.flops_per_sample)}FLOPs forward per sample{tokens}; "
        f"{readable(budget.flops_per_step)}FLOPs per step of {budget.batch:,} samples"
    )


def _memory(config: RunConfig, budget: Budget) -> str:
    totals = [memory.total for row in budget.rows for memory in (row.plain, row.checkpointed) if memory]
    power, unit = next(
        ((power, unit) for power, unit in ((3, "G"), (2, "M")) if max(totals) >= 1024**power), (1, "K")
    )
    lines: list[tuple[str, ...]] = [
        ("strategy", "samples", "weights", "gradients", "optimiser", "activations", "total", "fits")
    ]
    for row in budget.rows:
        name = row.strategy.name + (f"={row.strategy.tensor}" if row.strategy.tensor > 1 else "")
        lines.append((name, f"{row.samples:,}", *_cells(row.plain, 1024**power)))
        if row.checkpointed:
            lines.append(("  checkpointing", "", *_cells(row.checkpointed, 1024**power)))
    workers = f"each of {budget.workers} workers" if budget.workers > 1 else "one worker"
    head = f"memory   {unit}iB of {workers} at the peak, with {config.optim.name} in {config.train.precision}"
    return f"{head}\n\n{table(lines)}"


def _cells(memory: Memory, unit: int) -> tuple[str, ...]:
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
    return (*(f"{part / unit:,.1f}" for part in parts), f"{memory.device} GiB" if memory.device else "-")


def _time(config: RunConfig, budget: Budget, data: _Data, mfu: float) -> str:
    peaks = {device: peak for device in TIMED_ON if (peak := peak_flops(device, config.train.precision))}
    counts = {"a step": 1, "1,000 steps": 1000}
    if data.steps:
        counts[f"all {data.steps:,} steps"] = data.steps
    lines = [("", *peaks), ("peak", *(f"{readable(peak)}FLOPS" for peak in peaks.values()))]
    for name, steps in counts.items():
        lines.append((name, *(_spell(budget.seconds(steps, peak, mfu)) for peak in peaks.values())))
    devices = f"on {budget.workers} devices" if budget.workers > 1 else "on one device"
    return f"time     {devices} that reach {mfu:.0%} of their peak (--mfu)\n\n{table(lines)}"


def _spell(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return duration(seconds) if seconds < 86400 else f"{seconds / 86400:,.1f} days"


def _span(sizes: tuple[int, ...]) -> str:
    low, high = (readable(size).strip() for size in (min(sizes), max(sizes)))
    return low if low == high else f"{low} to {high}"


def _holds(size: int, memory: Memory) -> bool:
    return memory.device is not None and memory.device <= size


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
