"""Trainings on a device that torch does not know by itself: their losses are the CPU's, and they resume."""

import os
import shutil
import signal

import pytest

from running import ROOT, Place, Trace, assert_close, assert_equal

CONFIGS = ROOT / "jobs" / "configs"
EMULATED = ROOT / "tests" / "emulated"  # holds a torch_npu whose device is in the host's memory
HERE = ("scale.num_workers=0", "run_name=run")
TRAININGS = {
    "digits": ("digits", "train.max_steps=60", "train.evaluate_every_steps=20"),
    "gpt": ("gpt", "train.max_steps=6", "train.evaluate_every_steps=3", "model.width=64", "model.depth=2"),
    "resnet": ("resnet", "data.source=sklearn:digits", "train.max_steps=6", "model.width=8"),
    "speech": ("speech", "data.source=synthetic:speech?rows=40", "train.max_steps=4", "model.width=32"),
    "detector": ("detection", "data.source=synthetic:detection?rows=60&size=48", "train.max_steps=4"),
}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the device is compiled by g++"),
]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a job that may use the device."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(EMULATED), *([before] if before else [])])
    return {"PYTHONPATH": path, "EMULATED_BUILD": str(tmp_path_factory.mktemp("device"))}


@pytest.mark.parametrize("has_float64", ["1", "0"])
@pytest.mark.parametrize("training", TRAININGS)
def test_the_losses_are_those_of_the_cpu(
    place: Place, device: dict[str, str], training: str, has_float64: str
) -> None:
    config, *settings = TRAININGS[training]
    arguments = (str(CONFIGS / f"{config}.yaml"), *settings, *HERE)
    place.train(*arguments, "experiment_name=cpu", "scale.accelerator=cpu")
    result = place.train(
        *arguments, "experiment_name=npu", "scale.accelerator=npu", **device, EMULATED_FLOAT64=has_float64
    )
    assert result["device"] == "npu:0"
    assert result["is_verified"]
    one, other = Trace.of(place.folder("run", "cpu")), Trace.of(place.folder("run", "npu"))
    losses = {key: value for key, value in one.points.items() if key[0].endswith("loss")}
    assert len(losses) > 4
    for key, value in losses.items():
        assert other.points[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize("begun_on", ["npu", "cpu"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    place: Place, device: dict[str, str], begun_on: str
) -> None:
    settings = (str(CONFIGS / "digits.yaml"), *HERE, "checkpoint.every_steps=40", "train.epochs=12")
    begun = (*settings, f"scale.accelerator={begun_on}")
    place.train(*begun, "experiment_name=alone", **device)
    process = place.start("train", *begun, "experiment_name=killed", **device)
    folder = place.path / "runs" / "killed"
    while not list(folder.glob("run/checkpoints/step-0000[48]*/manifest.json")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = place.train(*settings, "scale.accelerator=npu", "experiment_name=killed", **device)
    assert (result["attempt"], result["device"]) == (2, "npu:0")
    compare = assert_equal if begun_on == "npu" else assert_close
    compare(Trace.of(place.folder("run", "killed")), Trace.of(place.folder("run", "alone")))
