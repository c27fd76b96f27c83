"""Speech recognition as people run it: learnt, measured again, heard, resumed, on any number of workers."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from running import ROOT, Place, Trace, assert_close, assert_equal, train_workers

CONFIG = str(ROOT / "jobs" / "configs" / "speech.yaml")
DIGITS = ROOT.parent / "shared" / "data" / "digits-speech"
SMALL = (
    "experiment_name=shoal", "data.source=synthetic:speech?rows=120&voices=2", "model.width=32", "model.depth=1",
    "model.args={dropout: 0.1}", "train.epochs=2", "optim.warmup_steps=5",
)  # fmt: skip
needs_digits = pytest.mark.skipif(not DIGITS.is_dir(), reason="the recordings of digits are not here")


def test_broken_recordings_stop_a_run_before_it_starts(place: Place) -> None:
    soundfile.write(place.path / "good.wav", np.zeros(8000), 8000)
    (place.path / "bad.flac").write_bytes(b"fLaC and then nothing")
    (place.path / "list.csv").write_text("path,text\ngood.wav,yes\nbad.flac,no\n")
    done = place.run_in_process("train", "--check", CONFIG, "data.source=audio:list.csv")
    assert done.code == 2
    [line] = done.err.strip().splitlines()
    assert line.startswith("error: data.source='audio:list.csv': 1 recording cannot be used: 'bad.flac' (")
    done = place.run_in_process("train", "--check", CONFIG, "task=classification")
    assert done.code == 2


@pytest.mark.long
def test_digits_are_learnt_measured_again_and_heard(place: Place) -> None:
    from mlflow import pyfunc

    result = place.train(CONFIG, "scale.num_workers=0", "run_name=run")
    assert result["is_verified"]
    assert result["metrics"]["test/wer"] <= 0.05
    done = place.run_in_process("evaluate", "runs/speech/run")
    assert done.code == 0, done.err
    for name, value in done.result["metrics"].items():
        assert result["metrics"][f"test/{name}"] == pytest.approx(value, rel=1e-4)
    folder = place.folder("run", "speech")
    table = json.loads(folder.read("report/transcripts.json"))
    assert table["columns"] == ["reference", "transcript"]
    assert len(table["data"]) == 10
    assert sum(said == heard for said, heard in table["data"]) >= 7
    assert folder.read("pictures/spectrograms.png").startswith(b"\x89PNG")
    model = pyfunc.load_model(str(place.path / "runs/speech/run/model"))
    rows = json.loads((place.path / "runs/speech/run/model/input_example.json").read_text())
    encoded = rows["data"][0][0]
    assert isinstance(soundfile.read(io.BytesIO(base64.b64decode(encoded)))[1], int)
    heard = [model.predict({"audio": [encoded]}, {"beam": beam})["prediction"][0] for beam in (0, 8)]
    assert all(heard)
    (place.path / "in").mkdir()
    (place.path / "in" / "a.wav").write_bytes(base64.b64decode(encoded))
    (place.path / "in" / "broken.wav").write_bytes(b"noise")
    done = place.run("predict", "runs/speech/run", "audio:in", "out", "scale.num_workers=0")
    assert done.code == 0, done.err
    rejected = [
        json.loads(line) for line in Path(place.path / "out" / "_rejected.jsonl").read_text().splitlines()
    ]
    assert len(rejected) == 1


@pytest.mark.long
def test_two_workers_shards_and_a_killed_run_end_as_one_process_does(place: Place) -> None:
    place.train(CONFIG, *SMALL, "scale.num_workers=0", "run_name=alone")
    alone = Trace.of(place.folder("alone"))
    for name, settings in {"two": (), "sharded": ("scale.strategy=fsdp",)}.items():
        place.train(CONFIG, *SMALL, "scale.num_workers=2", f"run_name={name}", *settings)
        assert_close(Trace.of(place.folder(name)), alone)
    settings = (*SMALL, "scale.num_workers=0", "run_name=killed", "checkpoint.every_steps=3")
    process = place.start("train", CONFIG, *settings)
    place.wait_for_step(process, "killed", 7)
    process.kill()
    process.communicate()
    place.train(CONFIG, *settings)
    assert_equal(Trace.of(place.folder("killed")), alone)


@pytest.mark.long
def test_a_killed_worker_leaves_the_record_and_weights_of_a_whole_run(place: Place) -> None:
    settings = (CONFIG, *SMALL, "train.epochs=8", "checkpoint.every_steps=4", "scale.num_workers=2")
    place.train(*settings, "run_name=whole")
    process = place.start("train", *settings, "run_name=killed")
    place.wait_for_step(process, "killed", 10)
    train_workers(process)[1].kill()
    done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert "lost worker" in done.err
    assert_equal(Trace.of(place.folder("killed")), Trace.of(place.folder("whole")))


@pytest.mark.long
@needs_digits
def test_strings_of_real_digits_are_learnt(place: Place) -> None:
    settings = (f"data.source=audio:{DIGITS}", "data.compose=3-7", "run_name=run")
    result = place.train(CONFIG, *settings)
    assert result["is_verified"]
    assert result["metrics"]["test/wer"] <= 0.1


@pytest.mark.long
def test_a_sweep_of_rates_and_widths_has_the_recordings_once(place: Place) -> None:
    done = place.run(
        "tune", CONFIG, *SMALL, "train.epochs=1", "optim.lr=1e-3,4e-3", "model.width=16,32",
        "model.parametrization=mup", "model.base_width=16", "run_name=sweep",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
