"""A node that is to leave: its training writes a checkpoint before, and goes on elsewhere as if it had stayed."""

from pathlib import Path

import pytest

from ray_nodes import drain, head, node
from running import SLOW_MODULE, Place, Trace, assert_equal
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
