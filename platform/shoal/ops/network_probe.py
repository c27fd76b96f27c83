"""All-reduce over pairs of nodes in two rounds, and which host is bad.

In the first round neighbours form pairs. In the second each node whose pair failed, or that had no partner, is paired
with one whose pair worked; the others change partners. A node that fails with a partner that works is the bad one.
"""

import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from shoal.storage.records import Finding

PATIENCE_S = 20.0  # of two nodes with each other
SMALL, LARGE = 1, 4 << 20  # float32 numbers: 4 bytes for the latency, 16 MiB for the bandwidth
SMALL_TIMES, LARGE_TIMES = 50, 5
SLOW_MS = 20.0
SLOW_SHARE = 0.4  # of the median bandwidth

Pair = tuple[str, str]


@dataclass(frozen=True)
class PairSpeed:
    """What two nodes reached, or why they did not reach each other."""

    latency_ms: float = 0.0
    bytes_per_second: float = 0.0
    error: str | None = None


def free_port() -> int:
    """Return a port of this host that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def measure_pair(rank: int, host: str, port: int, patience_s: float = PATIENCE_S) -> PairSpeed:
    """All-reduce with one other process, over gloo as workers on CPUs do.

    Args:
        rank: 0 opens the store at `host` and `port`, 1 joins it.
        patience_s: with a partner that does not come, and again with one that gloo does not reach; what is left of
            such a try ends with this process.
    """
    import torch.distributed

    assert torch.distributed.is_available()
    found: list[PairSpeed] = []
    measuring = threading.Thread(
        target=lambda: found.append(_measure(rank, host, port, timedelta(seconds=patience_s))),
        name="shoal-pair",
        daemon=True,
    )
    measuring.start()
    measuring.join(3 * patience_s)  # each of both waits may last longer than it is asked to
    return found[0] if found else PairSpeed(error=f"no connection within {patience_s:g} s")


def _measure(rank: int, host: str, port: int, patience: timedelta) -> PairSpeed:
    import torch.distributed

    dist: Any = torch.distributed  # whose stubs leave out the classes of C++
    options = dist.AllreduceOptions()
    options.timeout = patience

    def seconds_of(numbers: int, times: int) -> float:
        tensor = torch.zeros(numbers)
        group.allreduce([tensor], options).wait()  # the first one opens what it needs
        began_s = time.perf_counter()
        for _ in range(times):
            group.allreduce([tensor], options).wait()
        return (time.perf_counter() - began_s) / times

    try:
        store = dist.PrefixStore(
            "doctor", dist.TCPStore(host, port, 2, is_master=rank == 0, timeout=patience)
        )
        # Measured: gloo tries for five times as long as it is asked to.
        group = dist.ProcessGroupGloo(store, rank, 2, patience / 6)
        small_s, large_s = seconds_of(SMALL, SMALL_TIMES), seconds_of(LARGE, LARGE_TIMES)
    except RuntimeError as error:
        return PairSpeed(error=" ".join(str(error).partition("Exception raised")[0].split())[:200])
    return PairSpeed(1000 * small_s, 4 * LARGE / large_s)


def first_round(nodes: Sequence[str]) -> list[Pair]:
    """Return pairs of neighbours; one of an odd number has to wait."""
    return list(zip(nodes[::2], nodes[1::2], strict=False))


def second_round(nodes: Sequence[str], speeds: Mapping[Pair, PairSpeed]) -> list[Pair]:
    """Return other pairs: those that failed or waited with those that worked, then the rest among each other."""
    works = {node for pair, speed in speeds.items() if speed.error is None for node in pair}
    suspects = [node for node in nodes if node not in works]
    sound = [node for node in nodes if node in works]
    pairs = list(zip(suspects, sound, strict=False))
    rest = sound[len(pairs) :] + suspects[len(pairs) :]
    shifted = rest[1:] + rest[:1]
    return pairs + [pair for pair in first_round(shifted) if len(nodes) == 2 or not _was_tried(pair, speeds)]


def _was_tried(pair: Pair, speeds: Mapping[Pair, PairSpeed]) -> bool:
    return pair in speeds or pair[::-1] in speeds


def check_network(speeds: Mapping[Pair, PairSpeed]) -> list[Finding]:
    """Name the bad host of the pairs that failed or were slow; of the others say the slowest."""
    if not speeds:
        return [Finding(check="all-reduce", where="all", value="one node: there is no pair to measure")]
    failed = _failures(speeds)
    slow = _slow(speeds)
    if failed or slow:
        return failed + slow
    latency = max(speed.latency_ms for speed in speeds.values())
    slowest = min(speeds, key=lambda pair: speeds[pair].bytes_per_second)
    rate = f"{_rate(speeds[slowest])} or more ({' - '.join(slowest)})"
    value = f"{len(speeds)} pairs, latency up to {latency:.2f} ms, {rate}"
    return [Finding(check="all-reduce", where="all", value=value)]


def _failures(speeds: Mapping[Pair, PairSpeed]) -> list[Finding]:
    errors = {pair: speed.error for pair, speed in speeds.items() if speed.error is not None}
    return [
        Finding(
            check="all-reduce",
            level="fatal",
            where=where,
            value=f"all-reduce of {' - '.join(pair)} failed ({errors[pair]})",
            rule="each host must reach each other one at any port",
            remedy=f"look at names and firewall of {where}, or leave it out of the cluster",
        )
        for where, pair in _culprits(list(errors), _nodes_of(speeds.keys() - errors.keys())).items()
    ]


def _slow(speeds: Mapping[Pair, PairSpeed]) -> list[Finding]:
    sound = {pair: speed for pair, speed in speeds.items() if speed.error is None}
    if not sound:
        return []
    usual = statistics.median_high([speed.bytes_per_second for speed in sound.values()])
    slow = [
        pair
        for pair, speed in sound.items()
        if speed.bytes_per_second < SLOW_SHARE * usual or speed.latency_ms > SLOW_MS
    ]
    found = _culprits(slow, _nodes_of(sound.keys() - set(slow)))
    return [_slow_finding(where, pair, sound[pair], usual) for where, pair in found.items()]


def _nodes_of(pairs: Iterable[Pair]) -> set[str]:
    return {node for pair in pairs for node in pair}


def _culprits(bad: Sequence[Pair], sound: Collection[str]) -> dict[str, Pair]:
    """Return the node that explains each bad pair, or both nodes where neither is cleared, with such a pair.

    Args:
        sound: nodes that are in a pair that is not bad.
    """
    found: dict[str, Pair] = {}
    left = list({tuple(sorted(pair)): pair for pair in bad}.values())
    while left:
        times = Counter(node for pair in left for node in pair if node not in sound)
        alone = [node for pair in left for node in pair if _is_alone_suspect(node, pair, sound)]
        often = [node for node, count in times.most_common(1) if count > 1]
        suspect = next(iter([*alone, *often]), None)
        explained = [pair for pair in left if suspect in pair] if suspect else left[:1]
        found[suspect or " - ".join(sorted(left[0]))] = explained[0]
        left = [pair for pair in left if pair not in explained]
    return found


def _is_alone_suspect(node: str, pair: Pair, sound: Collection[str]) -> bool:
    return node not in sound and all(other in sound for other in pair if other != node)


def _slow_finding(where: str, pair: Pair, speed: PairSpeed, usual: float) -> Finding:
    return Finding(
        check="all-reduce",
        level="warning",
        where=where,
        value=f"{' - '.join(pair)}: latency {speed.latency_ms:.2f} ms, {_rate(speed)}; usual is {usual / 1e6:.0f} MB/s",
        rule=f"each step waits for the slowest pair: {SLOW_MS:g} ms at most, {SLOW_SHARE:.0%} of the usual or more",
        remedy=f"look at the network of {where}, or leave it out of the cluster",
    )


def _rate(speed: PairSpeed) -> str:
    return f"{speed.bytes_per_second / 1e6:.0f} MB/s"
