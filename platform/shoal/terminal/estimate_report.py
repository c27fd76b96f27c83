"""The estimate of a run as text: `python jobs/train.py --plan`."""

from shoal.errors import ConfigError
from shoal.models.memory_estimate import (
    GIB,
    MFU,
    SINGLE_WORKER,
    TIMED_ON,
    ParameterCount,
    RunEstimate,
    WorkerMemory,
)
from shoal.models.size import readable
from shoal.runs.config import RunConfig
from shoal.terminal.tables import duration, table
from shoal.training.checkpoint.interval import best_interval_s, expected_goodput
from shoal.training.optimizer import OptimConfig
from shoal.training.throughput import peak_flops
from shoal.workflows.estimate import DataShape, data_shape, estimate_for

# Of storage that hosts share; of what follows a failure, until the first step.
WRITTEN_PER_S, RESTART_S = 200e6, 60.0
MTBF_S = (3600.0, 6 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)


def estimate_report(config: RunConfig, mfu: float = MFU) -> str:
    """Return model size, work, memory by strategy, time and verdict as text.

    Args:
        mfu: model FLOPs utilization: the share of the devices' peak that training reaches, above 0 and at most 1.

    Raises:
        ConfigError: the share is outside that range.
        UserError: as `shoal.workflows.estimate.estimate_for`.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(
            f"--mfu={mfu:g}: it is the share of the devices' peak, above 0 and at most 1, e.g. 0.4"
        )
    data = data_shape(config)
    estimate = estimate_for(config, data)
    parts = [_about(config, estimate, data), _memory(config, estimate), _time(config, estimate, data, mfu)]
    parts.append(_goodput(config, estimate))
    return "\n\n".join([*parts, f"verdict  {verdict(estimate)}"])


def verdict(estimate: RunEstimate) -> str:
    """Name the smallest device that fits the run, and the strategies under which it fits and does not."""
    choices = [memory for row in estimate.layouts for memory in (row.plain, row.checkpointed) if memory]
    size = min((memory.device for memory in choices if memory.device), default=None)
    if size is None:
        least = min(memory.total for memory in choices) / GIB
        return (
            f"fits no device, {least:,.0f} GiB at least: lower data.global_batch_size, or take more workers "
            "or a smaller model"
        )
    fits, fails = [], []
    for row in estimate.layouts:
        if _fits(size, row.plain):
            fits.append(row.layout.name)
        elif row.checkpointed and _fits(size, row.checkpointed):
            fits.append(f"{row.layout.name} with activation checkpointing")
        else:
            fails.append(row.layout.name)
    under = (
        f" under {_listed(fits, 'and')}" if estimate.num_workers > 1 else fits[0].removeprefix(SINGLE_WORKER)
    )
    return f"fits {size} GiB{under}" + (f"; not under {_listed(fails, 'or')}" if fails else "")


def _about(config: RunConfig, estimate: RunEstimate, data: DataShape) -> str:
    count = estimate.parameters
    parts = [f"{len(count.units)} blocks of {_span(count.units)}"] if estimate.layouts[0].checkpointed else []
    parts += [f"{readable(count.embedding).strip()} in embeddings"] if count.embedding else []
    per_token = estimate.flops_per_sample / data.sample[0]
    tokens = f" ({readable(per_token)}FLOPs per token)" if data.vocabulary else ""
    return (
        f"model    {config.model.name}: {count.total:,} parameters{': ' if parts else ''}{', '.join(parts)}\n"
        f"work     {readable(estimate.flops_per_sample)}FLOPs forward per sample{tokens}; "
        f"{readable(estimate.flops_per_step)}FLOPs per step of {estimate.batch_size:,} samples\n"
        f"decay    {_decay(config.optim, count)}"
    )


def _decay(optim: OptimConfig, count: ParameterCount) -> str:
    """Say which parameter groups decay."""
    if not optim.weight_decay:
        return "none (optim.weight_decay=0)"
    tensors, parameters = map(sum, zip(count.matrices, count.others, strict=True))
    if optim.decay == "all":
        return f"{optim.weight_decay:g} of all {tensors:,} tensors, {parameters:,} parameters"
    return (
        f"{optim.weight_decay:g} of {count.matrices[0]:,} matrices, {count.matrices[1]:,} parameters; none of "
        f"{count.others[0]:,} biases, norms and embeddings, {count.others[1]:,} parameters"
    )


def _memory(config: RunConfig, estimate: RunEstimate) -> str:
    totals = [memory.total for row in estimate.layouts for memory in (row.plain, row.checkpointed) if memory]
    power, unit = next(
        ((power, unit) for power, unit in ((3, "G"), (2, "M")) if max(totals) >= 1024**power), (1, "K")
    )
    lines: list[tuple[str, ...]] = [
        (
            "strategy",
            "samples",
            "weights",
            "gradients",
            "optimizer",
            "activations",
            "evaluation",
            "total",
            "fits",
        )
    ]
    for row in estimate.layouts:
        name = row.layout.name + (f"={row.layout.tensor}" if row.layout.tensor > 1 else "")
        lines.append((name, f"{row.samples:,}", *_cells(row.plain, 1024**power)))
        if row.checkpointed:
            lines.append(("  checkpointing", "", *_cells(row.checkpointed, 1024**power)))
    workers = f"each of {estimate.num_workers} workers" if estimate.num_workers > 1 else "one worker"
    head = f"memory   {unit}iB of {workers} at the peak, with {config.optim.name} in {config.train.precision}"
    return f"{head}\n\n{table(lines)}"


def _cells(memory: WorkerMemory, unit: int) -> tuple[str, ...]:
    parts = (
        memory.weights,
        memory.gradients,
        memory.optimizer,
        memory.activations,
        memory.evaluation,
        memory.total,
    )
    return (*(f"{part / unit:,.1f}" for part in parts), f"{memory.device} GiB" if memory.device else "-")


def _time(config: RunConfig, estimate: RunEstimate, data: DataShape, mfu: float) -> str:
    peaks = {device: peak for device in TIMED_ON if (peak := peak_flops(device, config.train.precision))}
    counts = {"a step": 1, "1,000 steps": 1000}
    if data.steps:
        counts[f"all {data.steps:,} steps"] = data.steps
    lines = [("", *peaks), ("peak", *(f"{readable(peak)}FLOPS" for peak in peaks.values()))]
    for name, steps in counts.items():
        lines.append((name, *(_time_text(estimate.seconds(steps, peak, mfu)) for peak in peaks.values())))
    devices = f"on {estimate.num_workers} devices" if estimate.num_workers > 1 else "on one device"
    return f"time     {devices} that reach {mfu:.0%} of their peak (--mfu)\n\n{table(lines)}"


def _goodput(config: RunConfig, estimate: RunEstimate) -> str:
    """Say which share of the time becomes kept steps, by how often the job fails."""
    plain = estimate.layouts[0].plain  # a checkpoint holds what one worker of ddp does
    nbytes = plain.weights + plain.optimizer
    save_s = nbytes / WRITTEN_PER_S
    every_s, mtbf_s = config.checkpoint.every_s, config.checkpoint.mtbf_s
    lines: list[tuple[str, ...]] = [("a failure every", "a checkpoint every", "goodput")]
    for failure_s in [mtbf_s] if mtbf_s else MTBF_S:
        interval_s = every_s if isinstance(every_s, float) else best_interval_s(save_s, failure_s)
        share = expected_goodput(interval_s, save_s, RESTART_S, failure_s)
        lines.append((duration(failure_s), _time_text(interval_s), f"{share:.1%}"))
    pace = f"={every_s:g}" if isinstance(every_s, float) else "=auto"
    written = f"{readable(nbytes)}B in {_time_text(save_s)} ({WRITTEN_PER_S / 1e6:.0f} MB/s)"
    head = f"goodput  with checkpoints of {written} and checkpoint.every_s{pace}, {RESTART_S:.0f} s for a new start"
    return f"{head}\n\n{table(lines)}"


def _time_text(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return duration(seconds) if seconds < 86400 else f"{seconds / 86400:,.1f} days"


def _span(sizes: tuple[int, ...]) -> str:
    low, high = (readable(size).strip() for size in (min(sizes), max(sizes)))
    return low if low == high else f"{low} to {high}"


def _fits(size: int, memory: WorkerMemory) -> bool:
    return memory.device is not None and memory.device <= size


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
