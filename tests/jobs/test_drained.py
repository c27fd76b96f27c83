"""A node that is to leave: its training writes a checkpoint before, and goes on elsewhere as if it had stayed."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from running import RAY_ENV, SLOW_MODULE, Place, Trace, assert_equal, end, eventually, free_port, has_joined
from shoal.storage.records import FailureRecord, TrainResult

pytestmark = pytest.mark.long

STEPS = 4000
SETTINGS = (
    "run_name=run",
    "model.name=slow:Net",
    "data.source=synthetic:classification?rows=2000",
    "train.epochs=1000",
    f"train.max_steps={STEPS}",
    "checkpoint.every_steps=3900",  # none between the start and the notice
    "scale.num_workers=2",
    "scale.max_failures=0",
)


@contextlib.contextmanager
def node(address: str, resource: str) -> Iterator[str]:
    """A node of a cluster on this machine, with two CPUs; Ray's name of it."""
    options = [f"--address={address}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--block"]
    options += [f'--resources={{"{resource}": 1}}', f"--dashboard-agent-listen-port={free_port()}"]
    process = ray("start", *options, "--min-worker-port=0", "--max-worker-port=0")
    try:
        eventually(lambda: node_with(address, resource), 60, "the node joins")
        yield node_with(address, resource)
    finally:
        end(psutil.Process(process.pid))


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


def ray(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments],
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


def test_a_node_that_is_drained_is_left_with_a_checkpoint_and_no_step_is_made_again(
    place: Place, tmp_path: Path
) -> None:
    place.add_module("slow", SLOW_MODULE)
    with head() as address, node(address, "first") as left:
        place.env["RAY_ADDRESS"] = address
        process = place.start("train", *SETTINGS)
        place.wait_for_step(process, "run", 100)
        with node(address, "second"):
            drain(address, left)
            done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert "is being drained: a checkpoint is written, and training goes on elsewhere" in done.err
    folder = place.folder("run")
    result = folder.load(TrainResult)
    assert result is not None
    assert result.goodput is not None
    assert folder.load(FailureRecord) is None
    first, second = result.goodput.attempts
    assert second.why.endswith("was drained")
    assert 100 <= second.step < 3900
    assert result.goodput.seconds["repeated_steps"] == 0
    (tmp_path / "twin").mkdir()
    twin = Place(tmp_path / "twin", {})
    twin.add_module("slow", SLOW_MODULE)
    assert twin.run("train", *SETTINGS).code == 0
    assert_equal(Trace.of(folder), Trace.of(twin.folder("run")))
