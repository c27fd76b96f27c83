"""A model's repeated parts, by which FSDP shards, tensor parallelism splits and activation checkpointing recomputes."""

from torch import nn


def blocks_of(model: nn.Module) -> nn.ModuleList | nn.Sequential | None:
    """Return the modules that a model names `blocks`; None if it names none, or has none."""
    blocks = getattr(model, "blocks", None)
    return blocks if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) else None
