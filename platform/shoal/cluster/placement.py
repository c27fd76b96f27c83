"""On which hosts workers are placed: not on those that failed too many runs or do not answer, where others have room.

Ray places workers wherever it believes that there is room; a label selector leaves nodes out. What is left out is a
pure function of what Ray says of its nodes, and of which of them answer.
"""

import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.cluster import session
from shoal.cluster.answering import answering
from shoal.cluster.free_room import fits
from shoal.cluster.node_selector import Selector, leaving_out, left_out
from shoal.cluster.ray_private import draining_nodes, free_resources
from shoal.storage.host_ledger import HostLedger, failing_hosts
from shoal.storage.lease import now_ms
from shoal.storage.records import HostFailure

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0  # until workers that were ended have left their room
LOOK_EVERY_S = 0.5
TOO_MANY = "half of the hosts at most are left out"  # where most fail, it is not the hosts
LETS_BACK = "`shoal doctor` lets it back once its checks pass there"


@dataclass(frozen=True)
class FreeNode:
    """A live node, by Ray's name, its host, what it has, what of it is free, and whether it takes connections."""

    node: str
    host: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    answers: bool = True


def leave_out(
    nodes: Sequence[FreeNode], needs: Mapping[str, float], workers: int, hosts: Sequence[str]
) -> list[str]:
    """Return which hosts can be left out, so that the others have room for all workers.

    Args:
        hosts: that are to be left out, the worst first.
    """
    left: list[str] = []
    for host in hosts:
        others = [node for node in nodes if node.host not in (*left, host)]
        if sum(fits(needs, node.free) for node in others) >= workers:
            left.append(host)
    return left


class Placement:
    """Of the workers of one run, in an open Ray session."""

    def __init__(self, run: str) -> None:
        """Take where the run is stored.

        Args:
            run: URI of the folder of a run, or of the sweep that it is a trial of.
        """
        storage, experiment, name = run.rsplit("/", 2)
        self._ledger, self._run = HostLedger(storage), f"{experiment}/{name}"
        self._said: set[str] = set()

    def charge(self, host: str | None, kind: str, message: str) -> None:
        """Note that a host failed the run; what has no host is nobody's."""
        if host:
            with contextlib.suppress(OSError):  # training goes on
                self._ledger.charge(
                    HostFailure(host=host, run=self._run, kind=kind, message=message, at_ms=now_ms())
                )

    def selector(
        self, needs: Mapping[str, float], workers: int, suspect: str | None = None, waits: bool = False
    ) -> Selector:
        """Return the label selector that leaves hosts out, or None where there is nothing to leave out.

        Args:
            needs: of each worker, by Ray's names of resources; where it is nothing, no host is left out.
            suspect: a host to avoid for once, before all others.
            waits: whether workers of an earlier attempt may still leave room.
        """
        if not needs or not session.answers():
            return None
        nodes = live_nodes()
        there = {node.host for node in nodes}
        if len(there) < 2:
            return None
        recent = self._recent()
        failing = [host for host in failing_hosts(recent) if host in there]
        able = {node.host for node in nodes if fits(needs, node.total)}
        worst = failing[: len(able) // 2]
        silent = [node.host for node in nodes if not node.answers]
        suspects = [suspect] if suspect in there else []
        wanted = list(dict.fromkeys([*silent, *suspects, *worst]))
        possible = leave_out([replace(node, free=node.total) for node in nodes], needs, workers, wanted)
        until = time.monotonic() + (PATIENCE_S if waits else 0.0)
        while len(left := leave_out(nodes, needs, workers, wanted)) < len(possible):
            if time.monotonic() > until:
                break
            time.sleep(LOOK_EVERY_S)
            nodes = live_nodes()
        for host in failing:
            used = f"the others lack room for {workers} workers" if host in worst else TOO_MANY
            self._say(host, recent[host], None if host in left else used)
        return leaving_out([node.node for node in nodes if node.host in left])

    def _recent(self) -> dict[str, list[HostFailure]]:
        try:
            return self._ledger.recent(now_ms())
        except OSError:
            logger.debug("what hosts have failed is not known", exc_info=True)
            return {}

    def _say(self, host: str, failures: Sequence[HostFailure], used: str | None) -> None:
        """Warn of a host, once.

        Args:
            used: why it is used all the same; None: it is left out.
        """
        if host in self._said:
            return
        self._said.add(host)
        last = failures[0]
        what = f"is used all the same, since {used}" if used else "is left out"
        logger.warning(
            "host %s failed %d runs in a week, the last of them %s (%s), and %s: %s",
            host, len(failures), last.run, last.kind, what, LETS_BACK,
        )  # fmt: skip


def resources_beside(selector: Selector) -> dict[str, float]:
    """Return the resources of all live nodes that a selector of `Placement` does not leave out, by Ray's names."""
    import ray

    others = left_out(selector)
    found: dict[str, float] = defaultdict(float)
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in others:
            for name, amount in node["Resources"].items():
                found[name] += amount
    return found


def live_nodes() -> list[FreeNode]:
    """Ask Ray; nodes that are being drained are left out."""
    import ray

    draining, free = draining_nodes(), free_resources()
    live = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    there = {node["NodeID"] for node in answering(live)}
    return [
        FreeNode(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["Resources"],
            free.get(node["NodeID"], node["Resources"]),
            node["NodeID"] in there,
        )
        for node in live
    ]
