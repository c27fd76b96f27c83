"""What a compression found, as text."""

from shoal.compression.limits import Limits
from shoal.models.size import readable
from shoal.storage.records import CompressedVariant, CompressionResult, MeasuredModel
from shoal.terminal.tables import table


def compression_report(result: CompressionResult, registered: str | None) -> str:
    """Return each variant beside the model that it was made of, and whether it is registered.

    Args:
        registered: the name under which variants are registered that nothing speaks against.
    """
    lines = [
        f"{result.model}, measured on {result.rows} {result.split} rows of {result.data_source}, on one thread",
        _table(result),
    ]
    for name, one in result.variants.items():
        lines.append(f"{name}: {one.method}; {one.run_folder}")
        lines.append(f"  {_outcome(name, one, result, registered)}")
    if result.fits is not None:
        lines.append(
            f"of those that fit {result.fits}, the best is {result.picked}"
            if result.picked
            else f"no variant fits {result.fits} and loses no more than {result.max_loss_of:g}: none is registered; "
            "allow more, or set a larger compress.prune or a smaller compress.distill"
        )
    return "\n".join(lines)


def _table(result: CompressionResult) -> str:
    first = next(iter(result.variants.values()))
    batches = list(first.original.latency)
    header = (
        "",
        result.metric,
        "flips",
        "alike",
        "bytes",
        "memory",
        "parameters",
        "FLOPs",
        *(f"{rows} row{'s' * (rows != '1')}, ms (p99)" for rows in batches),
        *(f"faster at {rows}" for rows in batches),
    )
    lines = [header]
    for runtime in dict.fromkeys(one.original.runtime for one in result.variants.values()):
        of_it = {name: one for name, one in result.variants.items() if one.original.runtime == runtime}
        original = next(iter(of_it.values())).original
        lines.append((f"original ({runtime})", *_cells(result.metric, original), *("" for _ in batches)))
        for name, one in of_it.items():
            flips, alike = one.flips, one.attribution_agreement
            cells = _cells(
                result.metric,
                one.variant,
                "-" if flips is None else f"{flips:.2%}",
                "-" if alike is None else f"{alike:.2f}",
            )
            lines.append((name, *cells, *(f"{one.speedup(rows):.2f}x" for rows in batches)))
    return table(lines)


def _cells(metric: str, model: MeasuredModel, flips: str = "", alike: str = "") -> tuple[str, ...]:
    latency = (f"{one.p50_ms:.3g} ({one.p99_ms:.3g})" for one in model.latency.values())
    zeros = f" ({model.zeros:,} zeros)" if model.zeros * 10 > model.parameters else ""
    memory, flops = ("-" if value is None else readable(value) for value in (model.memory_bytes, model.flops))
    return (
        f"{model.metrics[metric]:.4f}",
        flips,
        alike,
        f"{model.bytes:,}",
        memory if memory == "-" else f"{memory}B",
        f"{model.parameters:,}{zeros}",
        flops.strip(),
        *latency,
    )


def _outcome(name: str, one: CompressedVariant, result: CompressionResult, registered: str | None) -> str:
    if one.rejected:
        return f"not registered: {one.rejected}"
    if result.fits is not None and (misses := Limits.parse(result.fits).misses(one.variant)):
        return f"not registered: {misses}"
    if result.fits is not None and name != result.picked:
        return f"not registered: it fits, and {result.picked} is better"
    return f"registered as {registered}" if registered else "good enough for track.registered_model_name=NAME"
