"""What a finished job has achieved, as text."""

from collections.abc import Mapping
from typing import Any


def achieved(result: Mapping[str, Any]) -> str:
    """Say what a training achieved of what its devices could, and how much memory it took, by its `result.json`."""
    parts = []
    if result["tokens_per_second"]:
        parts.append(f"{result['tokens_per_second']:,.0f} tokens/s")
    if result["flops_per_second"]:
        share = f" ({result['mfu']:.1%} of the devices' peak)" if result["mfu"] else ""
        parts.append(f"{result['flops_per_second'] / 1e9:,.3g} GFLOP/s{share}")
    parts.append(f"peak memory of a worker {result['peak_memory_bytes'] / 2**20:,.0f} MiB")
    if result["micro_batch_size"]:
        parts.append(f"{result['micro_batch_size']} samples at a time")
    return "; ".join(parts)
