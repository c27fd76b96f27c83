"""Random numbers of rows: a function of seed, step, row and element, not of the worker that has the row.

torch draws from a generator that each worker has for itself. Here an element's draw is a hash of its row's key and its
column's. A row's key comes from the seed, the optimizer step and the row's place in the global batch; a column's from
a name, the number of the call in this forward, and the element's place. So draws are the same however a batch is
divided among workers and micro-batches, and when activations are computed again in backward.

The hash is the finalizer `lowbias32` (Wellons 2018, "Prospecting for Hash Functions"; in the manner of MurmurHash3's)
in 32-bit integers, which are the same on every device.

It knows the rows that the training loop announces (`RowsOfBatch`); it does not know what is drawn for.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shoal.data.sampler import mix

SALT = np.uint64(0x4452_4F50)  # keeps the draws apart from those of order, splits and views
STEPS = 64  # that row keys are made for at a time

_draw = torch.zeros((), dtype=torch.int64)


class _Announced:
    """The rows that are being computed on.

    Attributes:
        keys: [n] int32, of the rows; None outside the training loop.
        step: of the optimizer.
        place: what keys of other steps are made from: seed, first row, distance of rows, number of rows.
        drawn: by module, the number of each call, by what it drew from torch's generator.
        calls: by module, calls that the compiler has traced.
        is_filler: whether the rows do not count.
        fallbacks: shapes of activations in which the rows were not found.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.step, self.place, self.is_filler = 0, (0, 0, 1, 0), False
        self.drawn: dict[int, dict[int, int]] = {}
        self.calls: dict[int, int] = {}
        self.fallbacks: set[tuple[int, ...]] = set()

    @property
    def draws(self) -> int:
        """How many numbers were drawn from torch's generator for these rows."""
        return sum(map(len, self.drawn.values()))


announced = _Announced()


class RowsOfBatch:
    """A context of forward and backward over rows of a global batch: row i is number `first + i * distance` of it."""

    def __init__(
        self,
        seed: int,
        step: int,
        first: int,
        distance: int,
        rows: int,
        device: torch.device,
        is_filler: bool = False,
    ) -> None:
        """Take what the rows are.

        Args:
            seed: of the run.
            step: of the optimizer, from 0.
            first: place of the first row in the global batch.
            distance: from a row's place to the next one's.
            rows: their number.
            device: that they are on.
            is_filler: whether they do not count.
        """
        self._step, self._place, self._device = step, (seed, first, distance, rows), device
        self._is_filler = is_filler

    def __enter__(self) -> None:
        block, number = divmod(self._step, STEPS)
        announced.step, announced.place = self._step, self._place
        announced.keys = row_keys(*self._place, block, self._device)[number]
        announced.drawn, announced.calls = {}, {}
        announced.is_filler = self._is_filler

    def __exit__(self, *_: object) -> None:
        announced.keys, announced.is_filler = None, False


def draw() -> int:
    """Draw a number from torch's generator for the CPU."""
    return int(_draw.random_())


def call_number(key: int) -> int:
    """Return the number of this call of a module among those on these rows.

    A call draws from torch's generator, whose state torch restores when it computes activations again: a call that
    draws what an earlier one drew is that one again. The compiler computes again from what it has traced.
    """
    if torch.compiler.is_compiling():
        number = announced.calls.get(key, 0)
        announced.calls[key] = number + 1
        return number
    drawn = announced.drawn.setdefault(key, {})
    return drawn.setdefault(draw(), len(drawn))


def column_seed(key: int, call: int) -> int:
    """Return a signed 32-bit number."""
    bits = (key ^ (call + 1) * 0x9E3779B1) & 0xFFFFFFFF
    bits = (bits ^ bits >> 16) * 0x7FEB352D & 0xFFFFFFFF
    bits = (bits ^ bits >> 15) * 0x846CA68B & 0xFFFFFFFF
    return (bits ^ bits >> 16) - (1 << 31)


@functools.lru_cache(maxsize=64)
def row_keys(seed: int, first: int, distance: int, rows: int, block: int, device: torch.device) -> Tensor:
    """Return [STEPS, rows] int32, the keys of a worker's rows in a block of steps."""
    steps = np.arange(block * STEPS, (block + 1) * STEPS, dtype=np.uint64)
    lanes = first + distance * np.arange(rows, dtype=np.uint64)
    keys = mix(mix(mix(np.uint64(seed) + SALT) ^ steps)[:, None] ^ lanes)
    return torch.from_numpy((keys >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(device)


def by_rows(shape: tuple[int, ...], draw_rows: Callable[[int], Tensor]) -> Tensor | None:
    """Return draws [...] for an activation of a shape [n, ...], [k, n, ...] or [n * k, ...]; None: no rows are found.

    Args:
        draw_rows: returns [n, elements] for a number of elements of a row.
    """
    assert announced.keys is not None
    rows = len(announced.keys)
    elements = product(shape) // rows
    if shape[0] == rows or (shape[0] % rows == 0 and not (len(shape) > 2 and shape[1] == rows)):
        return draw_rows(elements).view(shape)
    if len(shape) > 2 and shape[1] == rows:
        return draw_rows(elements).view(rows, shape[0], *shape[2:]).transpose(0, 1)
    announced.fallbacks.add(shape)
    return None


def product(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda one, other: one * other, shape, 1)


def draw_bits(keys: Tensor, elements: int, columns: int) -> Tensor:
    """Return [..., pairs] int32 of random bits, two elements to each, for keys of rows [...] and a column seed."""
    pairs = torch.arange((elements + 1) // 2, dtype=torch.int32, device=keys.device)
    return hash_bits(keys[..., None] + hash_bits(hash_bits(pairs) + columns))


def hash_bits(bits: Tensor) -> Tensor:
    """Mix 32-bit integers in place."""
    # A shift repeats the sign, which is masked away.
    bits = bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    bits = bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - (1 << 32))
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
