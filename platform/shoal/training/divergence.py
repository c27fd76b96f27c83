"""A loss that is not finite: whose samples it came from, and what is compared when the same steps are made again.

Depends on the order's lanes and on how workers gather; independent of what follows.
"""

import math
import socket
import struct
from collections.abc import Sequence

from shoal.data.sampler import Lanes
from shoal.distributed.process_group import Collective
from shoal.errors import DivergedError

COMPARED = 8  # losses of a divergence that are kept
NAMED = 5  # samples in a message


def diverged(
    collective: Collective, lanes: Lanes, step: int, own: float, totals: Sequence[float], rate: float
) -> DivergedError:
    """Return the error of a step whose loss is not finite; called on all workers at once.

    Args:
        step: counted from 1.
        own: this worker's sum of losses.
        totals: the sums over all workers up to this step, the last of which is not finite.
        rate: the learning rate.
    """
    is_own = not math.isfinite(own)
    found = collective.gather((is_own, socket.gethostname(), lanes.rows_of(step - 1).tolist()))
    hosts = {host for _, host, _ in found}
    broken = [rank for rank, (is_broken, _, _) in enumerate(found) if is_broken]
    # Where all are broken, the weights were before: no worker's samples stand out.
    rank = broken[0] if broken and (collective.size == 1 or len(broken) < collective.size) else None
    parts = [found[rank][2]] if rank is not None else [rows for _, _, rows in found]
    samples = sorted({row for part in parts for row in part})
    whose = f" of worker {rank}" if rank is not None and collective.size > 1 else ""
    message = (
        f"train/loss is {totals[-1]} at step {step}: lower optim.lr (now {rate:g}), set optim.clip_norm, or look for "
        f"extreme values in the data ({describe_samples(samples)}{whose})"
    )
    return DivergedError(
        message,
        step=step,
        rank=rank,
        host=found[rank][1] if rank is not None else hosts.pop() if len(hosts) == 1 else None,
        samples=samples,
        losses=[struct.pack(">d", total).hex() for total in totals[-COMPARED:]],
    )


def describe_samples(samples: Sequence[int]) -> str:
    """E.g. "training rows 3, 8, 12 and 29 more"; they are counted from 0."""
    named = ", ".join(map(str, samples[:NAMED]))
    more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
    return f"training row{'s' * (len(samples) != 1)} {named}{more}"


def same_losses(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the losses up to a step are the same bits, as far as both know them."""
    known = min(len(one), len(other))
    return known > 0 and list(one[-known:]) == list(other[-known:])
