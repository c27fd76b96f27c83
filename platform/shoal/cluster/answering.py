"""Which nodes take connections: Ray counts one without power as alive for 14 s, one that is cut off for longer."""

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

REACH_S, AT_ONCE = 1.0, 16


def answering(nodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of `ray.nodes()` that Ray counts as alive and whose raylet takes a connection, within `REACH_S`."""
    asked = [node for node in nodes if node["Alive"]]
    if not asked:
        return []
    with ThreadPoolExecutor(min(len(asked), AT_ONCE)) as pool:
        return [node for node, answers in zip(asked, pool.map(_answers, asked), strict=True) if answers]


def _answers(node: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=REACH_S):
            return True
    except OSError:
        return False
