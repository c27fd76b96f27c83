"""How many values differ, estimated from a bounded sample of hashes."""

from dataclasses import dataclass

import numpy as np

SKETCH = 1024  # smallest hashes that are kept
ID_ROWS = 20  # fewer tell nothing of ids


@dataclass
class Sketch:
    """How many values differ: the smallest hashes of those that were looked at (Bar-Yossef et al., 2002, alg. 2)."""

    hashes: np.ndarray
    looked_at: int

    @classmethod
    def of(cls, hashes: np.ndarray, looked_at: int) -> "Sketch":
        return cls(smallest(hashes, SKETCH), looked_at)

    def merge(self, other: "Sketch") -> "Sketch":
        return Sketch.of(np.concatenate([self.hashes, other.hashes]), self.looked_at + other.looked_at)

    @property
    def distinct(self) -> int:
        """The estimate; exact below `SKETCH`."""
        if len(self.hashes) < SKETCH:
            return len(self.hashes)
        return min(self.looked_at, int((SKETCH - 1) / (float(self.hashes[-1]) / 2.0**64)))

    @property
    def are_all_different(self) -> bool:
        few = self.looked_at < SKETCH
        return self.looked_at >= ID_ROWS and self.distinct >= self.looked_at * (1.0 if few else 0.9)


def smallest(hashes: np.ndarray, count: int) -> np.ndarray:
    """Return the smallest `count` different hashes, sorted.

    `np.unique` of NumPy 2.4 takes 2 s for 500,000 hashes, this 10 ms.
    """
    enough = 4 * count
    ordered = np.sort(np.partition(hashes, enough)[:enough] if len(hashes) > enough else hashes)
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return np.asarray(ordered[is_new][:count])
