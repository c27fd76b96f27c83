"""A cluster of several Ray nodes on this machine: a head without CPUs, and nodes that come, go and are drained."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from running import RAY_ENV, end, eventually, free_port, has_joined


@dataclass(frozen=True)
class Node:
    """A node for workers.

    Attributes:
        name: Ray's.
    """

    name: str
    process: psutil.Process

    def kill(self) -> None:
        """End all its processes at once, as a power cut does."""
        tree = [self.process, *self.process.children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=10)


@contextlib.contextmanager
def node(address: str, resource: str, cpus: int = 2, host: str | None = None) -> Iterator[Node]:
    """A node of a cluster on this machine, which has joined; killed at the end, if not before.

    Args:
        resource: that it has alone, by which it is found.
        host: its hostname, if it is to be another host's; needs the permission to make a namespace of names.
    """
    options = [f"--address={address}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--block"]
    options += [f'--resources={{"{resource}": 1}}', f"--dashboard-agent-listen-port={free_port()}"]
    options += ["--min-worker-port=0", "--max-worker-port=0"]
    named = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"] if host else []
    process = psutil.Process(ray("start", *options, before=named).pid)
    try:
        eventually(lambda: node_with(address, resource) != "", 60, "the node joins")
        yield Node(node_with(address, resource), process)
    finally:
        if process.is_running():
            end(process)


@contextlib.contextmanager
def head() -> Iterator[str]:
    """A node without CPUs for workers; its address."""
    folder, port = tempfile.mkdtemp(prefix="shoal-", dir="/tmp"), free_port()
    options = [
        "--head",
        "--block",
        "--num-cpus=0",
        "--include-dashboard=false",
        "--node-ip-address=127.0.0.1",
    ]
    options += [f"--temp-dir={folder}", f"--port={port}", f"--ray-client-server-port={free_port()}"]
    options += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    process = ray("start", *options)
    try:
        eventually(lambda: has_joined(folder), 60, "the cluster starts")
        yield f"127.0.0.1:{port}"
    finally:
        end(psutil.Process(process.pid))
        shutil.rmtree(folder, ignore_errors=True)


def ray(*arguments: str, before: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*before, sys.executable, "-m", "ray.scripts.scripts", *arguments],
        env={**os.environ, **RAY_ENV, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


NODE_OF = """
import ray
ray.init({address!r}, log_to_driver=False, logging_level="error")
print(*(node["NodeID"] for node in ray.nodes() if {resource!r} in node["Resources"]))
"""


def node_with(address: str, resource: str) -> str:
    """Return Ray's name of the node that has a resource; nothing before it has joined."""
    env, code = {**os.environ, **RAY_ENV}, NODE_OF.format(address=address, resource=resource)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    ).stdout.strip()


def drain(address: str, node: str) -> None:
    """Give a node 60 s."""
    command = ["drain-node", f"--address={address}", f"--node-id={node}"]
    command += [
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=spot",
        "--deadline-remaining-seconds=60",
    ]
    assert ray(*command).wait(60) == 0
