"""Whether all workers hold the same weights, bit for bit, before a checkpoint is made of one's.

A bit that a host's memory or processor flipped changes the sum of the bit patterns of its tensor. It depends on torch
alone; independent of how workers talk, and of what follows.
"""

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.errors import WeightsDifferError

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@dataclass(frozen=True)
class WeightSums:
    """A worker's sums of bit patterns, by parameter."""

    host: str
    sums: tuple[int, ...]


def weight_sums(model: nn.Module) -> WeightSums:
    """Return the sums of this worker's parameters: a pass over the weights, on their device."""
    sums = [_sum(parameter.detach()) for parameter in model.parameters()]
    return WeightSums(socket.gethostname(), tuple(torch.stack(sums).tolist()) if sums else ())


def _sum(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.view(INTEGERS[plain.element_size()]).sum(dtype=torch.int64)


def check_agreement(model: nn.Module, found: Sequence[WeightSums], step: int) -> None:
    """Refuse weights that differ from worker to worker.

    Args:
        found: of each worker, by rank.

    Raises:
        WeightsDifferError: on every worker, with the one that most others differ from, where there is one.
    """
    counts = Counter(one.sums for one in found)
    if len(counts) == 1:
        return
    usual, votes = counts.most_common(1)[0]
    odd = [rank for rank, one in enumerate(found) if one.sums != usual]
    first = odd[0]
    pairs = zip(model.named_parameters(), found[first].sums, usual, strict=True)
    name = next(name for (name, _), its, other in pairs if its != other)
    if 2 * votes > len(found) and len(odd) == 1:
        raise WeightsDifferError(
            f"weights at step {step} differ: '{name}' on worker {first} on {found[first].host} is not what the other "
            f"{votes} workers have: its memory or processor changed a bit, or code that runs on one worker did",
            first,
            found[first].host,
        )
    where = ", ".join(f"{rank} on {one.host}" for rank, one in enumerate(found))
    raise WeightsDifferError(
        f"weights at step {step} differ: '{name}' is not the same on workers {where}, and none of them stands out: "
        "the memory or the processor of a host changed a bit, or code that runs on one worker did"
    )
