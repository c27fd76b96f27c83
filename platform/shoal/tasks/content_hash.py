"""Random numbers that are a function of a row's content: which worker holds a row changes nothing."""

import torch
from torch import Tensor


def row_keys(rows: Tensor, seed: int) -> Tensor:
    """Return an int64 hash [n] of each row [n, ...] of whole numbers and a seed, by content alone."""
    flat = rows.flatten(1)
    positions = mix(torch.arange(flat.shape[1], device=rows.device))
    start = torch.tensor(seed, device=rows.device)
    return mix(mix(flat ^ positions).sum(1) ^ mix(start))


def mix(bits: Tensor) -> Tensor:
    """SplitMix64's output function on an int64 tensor, as `shoal.data.sampler.mix` is on an array."""
    bits = bits + -0x61C8864680B583EB
    bits = (bits ^ _shifted(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shifted(bits, 27)) * -0x6B2FB644ECCEEE15
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift right without copying the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def uniform(keys: Tensor, count: int, stream: int) -> Tensor:
    """Return [n, count] float64 in [0, 1), a function of each key, the position and the stream."""
    positions = torch.arange(count, device=keys.device) + (stream << 32)
    return _shifted(mix(keys[:, None] ^ mix(positions)), 11).double() / 2**53
