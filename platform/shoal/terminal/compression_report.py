"""What a compression found, as text."""

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
        lines.append(f"  {_outcome(one, registered)}")
    return "\n".join(lines)


def _table(result: CompressionResult) -> str:
    first = next(iter(result.variants.values()))
    batches = list(first.original.latency)
    header = (
        "",
        result.metric,
        "flips",
        "bytes",
        "parameters",
        *(f"{rows} row{'s' * (rows != '1')}, ms (p99)" for rows in batches),
        *(f"faster at {rows}" for rows in batches),
    )
    lines = [header]
    for runtime in dict.fromkeys(one.original.runtime for one in result.variants.values()):
        of_it = {name: one for name, one in result.variants.items() if one.original.runtime == runtime}
        original = next(iter(of_it.values())).original
        lines.append((f"original ({runtime})", *_cells(result.metric, original), *("" for _ in batches)))
        for name, one in of_it.items():
            cells = _cells(result.metric, one.variant, "-" if one.flips is None else f"{one.flips:.2%}")
            lines.append((name, *cells, *(f"{one.speedup(rows):.2f}x" for rows in batches)))
    return table(lines)


def _cells(metric: str, model: MeasuredModel, flips: str = "") -> tuple[str, ...]:
    latency = (f"{one.p50_ms:.3g} ({one.p99_ms:.3g})" for one in model.latency.values())
    zeros = f" ({model.zeros:,} zeros)" if model.zeros * 10 > model.parameters else ""
    return f"{model.metrics[metric]:.4f}", flips, f"{model.bytes:,}", f"{model.parameters:,}{zeros}", *latency


def _outcome(one: CompressedVariant, registered: str | None) -> str:
    if one.rejected:
        return f"not registered: {one.rejected}"
    if one.is_export:
        return "good enough; an export is not registered: versions are models that Shoal loads"
    return f"registered as {registered}" if registered else "good enough for track.registered_model_name=NAME"
