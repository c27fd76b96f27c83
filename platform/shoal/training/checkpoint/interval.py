"""How often to write a checkpoint, and what failures cost: pure functions of seconds.

Young 1974 balances what checkpoints take with what a failure loses; Daly 2006 has the time that a work takes where
failures come at random moments. Independent of what a checkpoint holds and who writes it.
"""

import math
from collections.abc import Callable

from shoal.training.checkpoint.contents import CheckpointConfig

# By default a checkpoint follows another after these seconds, by whether the run folder is on a disk, and after this
# many times the seconds that it took. In an object store it is a dozen requests.
SAVE_EVERY_S, SAVE_EVERY_TIMES = {True: 1.0, False: 300.0}, 20.0
# Between failures of a run that has had none yet.
FIRST_MTBF_S = 24 * 3600.0

# Seconds that a checkpoint took -> seconds until the next one.
Pause = Callable[[float], float]


def default_pause(is_local: bool) -> Pause:
    return lambda save_s: max(SAVE_EVERY_S[is_local], SAVE_EVERY_TIMES * save_s)


def make_pause(config: CheckpointConfig, is_local: bool, observed_mtbf_s: Callable[[], float]) -> Pause:
    """Return how long to wait from one checkpoint to the next, as `checkpoint.every_s` says.

    Args:
        is_local: whether checkpoints are written to a disk.
        observed_mtbf_s: called where failures are looked for in the run itself.
    """
    every_s = config.every_s
    if every_s is None:
        return default_pause(is_local)
    if every_s != "auto":
        return lambda save_s: every_s
    mtbf_s = observed_mtbf_s() if config.mtbf_s is None else config.mtbf_s
    return lambda save_s: best_interval_s(save_s, mtbf_s)


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """Return the seconds between checkpoints at which least is lost (Young 1974): sqrt(2 x save x MTBF).

    Where failures come faster than checkpoints are written there is no best one; they follow each other then.
    """
    return max(save_s, math.sqrt(2 * save_s * mtbf_s))


def mean_time_between_failures_s(up_s: float, failures: int) -> float:
    """Return the seconds of work for a failure, of a run's own; a run without any is taken for one of a day."""
    return up_s / failures if failures else max(FIRST_MTBF_S, up_s)


def expected_goodput(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Return the share of time that becomes kept steps where failures come at random moments (Daly 2006, eq. 20).

    Args:
        interval_s: of steps between two checkpoints.
        save_s: for which a checkpoint holds up the steps.
        restart_s: from a failure until the first step after it.
        mtbf_s: mean time between failures.
    """
    exponent = (interval_s + save_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 700:  # beyond floating point: no interval is ever finished
        return 0.0
    return interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))
