"""Which worker the others wait for step by step, from what each of them said: one that is slow, and does not hang.

Compared is a worker's own work, data and computation without the wait for others. Where a model is divided among
workers (fsdp, tp), they wait for each other amid it, and none stands out. It knows neither who carries the words nor
what follows.
"""

from collections.abc import Sequence

from shoal.runs.hang import ENDED, WorkerStatus

TIMES = 2.0  # as long as the fastest
STEPS, WINDOW_S = 20, 10.0  # that it is so for: steps of a millisecond vary by the moment
LEAST_S = 0.001  # of its own work in a step: the others do not notice a wait for less


class Pace:
    """Of the workers of an attempt."""

    def __init__(self) -> None:
        self._since: tuple[float, dict[int, WorkerStatus]] | None = None
        self._is_warm = False
        self._named: set[int] = set()

    def slow(self, statuses: Sequence[WorkerStatus], size: int, now_s: float) -> list[str]:
        """Return a line for each worker that is found to be slow, once in an attempt.

        Args:
            statuses: what each said last.
            size: of the group.
            now_s: seconds of a clock that does not jump.
        """
        if size < 2 or len(statuses) < size or any(one.section == ENDED or not one.step for one in statuses):
            return []
        now = {one.rank: one for one in statuses}
        if self._since is None:
            self._since = now_s, now
            return []
        since_s, before = self._since
        steps = min(one.step - before[rank].step for rank, one in now.items())
        if steps < STEPS or now_s - since_s < WINDOW_S:
            return []
        was_warm, self._is_warm, self._since = self._is_warm, True, (now_s, now)
        if not was_warm:  # the first steps compile, and fill caches
            return []
        own_s = {
            rank: (one.busy_s - before[rank].busy_s) / (one.step - before[rank].step)
            for rank, one in now.items()
        }
        best = min(own_s, key=lambda rank: own_s[rank])
        found = [
            rank
            for rank in sorted(own_s)
            if own_s[rank] >= max(LEAST_S, TIMES * own_s[best]) and rank not in self._named
        ]
        self._named.update(found)
        return [_words(now[rank], own_s[rank], now[best], own_s[best], steps) for rank in found]


def _words(slow: WorkerStatus, slow_s: float, best: WorkerStatus, best_s: float, steps: int) -> str:
    times = f"{slow_s / best_s:.1f} times as long as" if best_s > 0 else "longer than"
    return (
        f"{slow.place} takes {slow_s * 1e3:.3g} ms for its own work of a step, {times} {best.place} over {steps} "
        "steps, and the others wait for it: look into what else runs on its host, and into its clock speed and disk"
    )
