"""A process on each node of the cluster, which calls functions there: to look at nodes, not to train on them."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from shoal.cluster.status_board import on_node

START_S = 120.0  # a worker process imports Shoal; a busy node takes its time
CALL_S = 60.0

logger = logging.getLogger(__name__)

Call = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Node:
    """What Ray says of a node."""

    address: str
    host: str
    gpus: int
    object_store_bytes: int


class _Caller:
    """Calls what it receives."""

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)


class NodeActors:
    """One actor for each live node, in an open session; each takes no CPU.

    Attributes:
        nodes: by name: the hostname, with the beginning of Ray's id where several share it.
    """

    def __init__(self) -> None:
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        alive.sort(key=lambda node: (node["NodeManagerHostname"], node["NodeID"]))
        times = Counter(node["NodeManagerHostname"] for node in alive)
        remote, self._actors = ray.remote(num_cpus=0)(_Caller), {}
        self.nodes: dict[str, Node] = {}
        for node in alive:
            host, node_id = node["NodeManagerHostname"], node["NodeID"]
            name = host if times[host] == 1 else f"{host}-{node_id[:6]}"
            self._actors[name] = remote.options(scheduling_strategy=on_node(node_id)).remote()
            has = node["Resources"]
            self.nodes[name] = Node(
                node["NodeManagerAddress"],
                host,
                int(has.get("GPU", 0)),
                int(has.get("object_store_memory", 0)),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        import ray

        for actor in self._actors.values():
            ray.kill(actor)

    def call(
        self, function: Callable[..., Any], *arguments: Any, timeout_s: float = START_S
    ) -> dict[str, Any]:
        """Call a function on all nodes at once, as `call_each` does."""
        return self.call_each(dict.fromkeys(self._actors, (function, arguments)), timeout_s)

    def call_each(self, calls: Mapping[str, Call], timeout_s: float = CALL_S) -> dict[str, Any]:
        """Call a function on each of some nodes, all at once.

        Returns:
            by node what it returned, or the exception: TimeoutError where there was no answer in time.
        """
        import ray

        running = {self._actors[name].call.remote(*call): name for name, call in calls.items()}
        done, late = ray.wait(list(running), num_returns=len(running), timeout=timeout_s)
        found: dict[str, Any] = {
            running[reference]: TimeoutError(f"no answer within {timeout_s:.0f} s") for reference in late
        }
        for reference in done:
            try:
                found[running[reference]] = ray.get(reference)
            except Exception as error:
                logger.debug("a call on %s failed", running[reference], exc_info=True)
                found[running[reference]] = getattr(error, "cause", None) or error
        return {name: found[name] for name in calls}
