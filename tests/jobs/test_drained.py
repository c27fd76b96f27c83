"""A node that is to leave: its training writes a checkpoint before, and goes on elsewhere as if it had stayed.

So does a trial whose node is gone without a word, also where no other node has room for a new process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sweeps import points

from ray_nodes import drain, head, node
from running import SLOW_MODULE, SLOW_SETTINGS, Place, Trace, assert_equal, eventually, twin_place
from shoal.storage.host_ledger import HostLedger
from shoal.storage.lease import now_ms
from shoal.storage.records import FailureRecord, TrainResult
from shoal.tracking.journal import JournalReader

pytestmark = pytest.mark.long

STEPS = 4000
SETTINGS = (
    "run_name=run",
    *SLOW_SETTINGS,
    f"train.max_steps={STEPS}",
    "checkpoint.every_steps=3900",  # none between the start and the notice
    "scale.num_workers=2",
    "scale.max_failures=0",
)


SWEEP = (
    "run_name=sweep",
    *SLOW_SETTINGS,
    "optim.lr=0.001,0.01",
    "train.evaluate_every_steps=250",
    "checkpoint.every_steps=1400",
    "scale.num_workers=1",
)


def points_of_one_at_a_time(tmp_path: Path, settings: Sequence[str]) -> Any:
    done = twin_place(tmp_path).run("tune", *settings, "tune.max_concurrent_trials=1")
    assert done.code == 0, done.err
    return points(done.result)


def test_a_node_that_is_drained_is_left_with_a_checkpoint_and_no_step_is_made_again(
    place: Place, tmp_path: Path
) -> None:
    place.add_module("slow", SLOW_MODULE)
    with head() as address, node(address, "first") as left:
        place.env["RAY_ADDRESS"] = address
        process = place.start("train", *SETTINGS)
        place.wait_for_step(process, "run", 100)
        with node(address, "second"):
            drain(address, left.name)
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
    twin = twin_place(tmp_path)
    assert twin.run("train", *SETTINGS).code == 0
    assert_equal(Trace.of(folder), Trace.of(twin.folder("run")))


def test_a_trial_of_one_worker_leaves_a_node_that_is_drained_and_makes_no_step_again(
    place: Place, tmp_path: Path
) -> None:
    settings = (*SWEEP, "train.max_steps=1500", "scale.max_failures=0", "tune.scheduler=asha")
    place.add_module("slow", SLOW_MODULE)
    folder = place.folder("sweep")

    def made() -> list[tuple[str, int]]:
        read = JournalReader(folder.inner("trials/t0000")).read()
        return [(point.key, point.step) for point in read if point.key in ("train/loss", "val/loss")]

    with head() as address, node(address, "first", 1) as left:
        place.env["RAY_ADDRESS"] = address
        process = place.start("tune", *settings)
        eventually(lambda: ("train/loss", 300) in made() or process.poll() is not None, 90, "a trial trains")
        with node(address, "second", 1):
            drain(address, left.name)
            done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert "trial t0000 left host" in done.err
    assert "which is being drained, with a checkpoint; it goes on elsewhere" in done.err
    assert "lost its process" not in done.err
    assert len(made()) == len(set(made()))  # no step twice
    assert HostLedger(str(place.path / "runs")).recent(now_ms()) == {}
    assert points(done.result) == points_of_one_at_a_time(tmp_path, settings)


def test_a_trial_whose_node_is_lost_goes_on_in_the_process_of_one_that_has_ended(
    place: Place, tmp_path: Path
) -> None:
    settings = (*SWEEP, "train.max_steps=2000")
    place.add_module("slow", SLOW_MODULE)
    folder = place.folder("sweep")

    def step_of(trial: str) -> int:
        return max((point.step for point in JournalReader(folder.inner(f"trials/{trial}")).read()), default=0)

    with head() as address, node(address, "first", 1), node(address, "second", 1) as gone:
        place.env["RAY_ADDRESS"] = address
        process = place.start("tune", *settings)
        eventually(lambda: min(map(step_of, ("t0000", "t0001"))) > 100, 90, "both trials train")
        gone.kill()
        done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert "goes on from its last checkpoint, 1 of 3" in done.err
    assert points(done.result) == points_of_one_at_a_time(tmp_path, settings)
