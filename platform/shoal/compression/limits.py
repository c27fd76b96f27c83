"""What a variant has to fit into, as `compress.fits` says, and which one is picked of those that do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.compression.measure import BATCHES
from shoal.models.size import readable
from shoal.storage.records import CompressedVariant, MeasuredModel
from shoal.tasks.metrics import Directions, is_higher_better

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(BYTES)})")
LATENCY = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(MILLISECONDS)}) ?@ ?batch ?(\d+)")


@dataclass(frozen=True)
class Limits:
    """The largest file of weights, in bytes, and the largest p50 of a call in ms, by the rows of the call."""

    bytes: float | None
    latency_ms: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Read e.g. `2MB, 5ms@batch1`.

        Raises:
            ValueError: a part is no such limit, or of a batch that is not measured.
        """
        size, latency = None, {}
        for part in map(str.strip, text.split(",")):
            if found := SIZE.fullmatch(part):
                size = float(found[1]) * BYTES[found[2]]
            elif (found := LATENCY.fullmatch(part)) and int(found[3]) in BATCHES:
                latency[str(int(found[3]))] = float(found[1]) * MILLISECONDS[found[2]]
            else:
                raise ValueError(
                    f"'{part}' is no limit: write a size such as 2MB (B, kB, MB, GB), a median latency such as "
                    f"5ms@batch1 (us, ms, s; batches of {' and '.join(map(str, BATCHES))} are measured), or several "
                    "with commas"
                )
        return cls(size, latency)

    def misses(self, model: MeasuredModel) -> str | None:
        """Return what of a model is too large or too slow; None: it fits."""
        found = []
        if self.bytes is not None and model.bytes > self.bytes:
            found.append(f"{readable(model.bytes)}B are more than {readable(self.bytes)}B")
        for rows, most in self.latency_ms.items():
            if (p50 := model.latency[rows].p50_ms) > most:
                found.append(f"{p50:.3g} ms of batch {rows} are more than {most:.3g} ms")
        return "; ".join(found) or None


def pick(
    variants: Mapping[str, CompressedVariant], limits: Limits, metric: str, said: Directions
) -> str | None:
    """Return the name of the best variant that fits and that nothing speaks against, of equal ones the smallest.

    No other one that fits is better, so that it lies on the Pareto front.
    """
    sign = 1.0 if is_higher_better(metric, said) else -1.0
    fitting = [
        (-sign * one.variant.metrics[metric], one.variant.bytes, name)
        for name, one in variants.items()
        if not (one.rejected or limits.misses(one.variant))
    ]
    return min(fitting)[-1] if fitting else None
