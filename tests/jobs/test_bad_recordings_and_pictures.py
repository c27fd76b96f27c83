"""Broken recordings and annotations: a run is refused by one line that names them, or it says what it left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from box_formats import pictures, write_coco
from running import ROOT, Finished, Place

pytestmark = pytest.mark.long

CONFIGS = ROOT / "jobs" / "configs"
SMALL = (
    "scale.num_workers=0",
    "train.max_steps=2",
    "data.global_batch_size=4",
    "optim.warmup_steps=0",
    "run_name=run",
)
SPEECH = (
    str(CONFIGS / "speech.yaml"),
    "data.source=audio:in",
    "model.width=16",
    "data.tokenizer=char",
    *SMALL,
)
DETECTION = (str(CONFIGS / "detection.yaml"), "data.source=boxes:in", "model.width=8", *SMALL)
RATE, COUNT = 8000, 40


def write_recordings(folder: Path) -> None:
    """Write recordings of a second each, with their texts and splits."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    lines = ["path\tsentence\tsplit"]
    for number in range(COUNT):
        soundfile.write(folder / f"{number}.flac", draw.normal(0, 0.1, RATE), RATE)
        split = "test" if number >= COUNT - 5 else "validation" if number >= COUNT - 10 else "train"
        lines.append(f"{number}.flac\t{('yes', 'no')[number % 2]}\t{split}")
    (folder / "all.tsv").write_text("\n".join(lines))


def replace_recording(folder: Path, samples: np.ndarray, rate: int) -> None:
    soundfile.write(folder / "3.flac", samples, rate)


def empty(folder: Path) -> None:
    (folder / "3.flac").unlink()
    soundfile.write(folder / "3.flac", np.zeros(0), RATE, format="WAV")


def truncated(folder: Path) -> None:
    data = (folder / "3.flac").read_bytes()
    (folder / "3.flac").write_bytes(data[: len(data) // 2])


def unknown_characters(folder: Path) -> None:
    """In a text of the test split, of which the training texts have none."""
    text = (folder / "all.tsv").read_text()
    (folder / "all.tsv").write_text(text.replace(f"{COUNT - 1}.flac\tno", f"{COUNT - 1}.flac\t日本"))


def no_file(folder: Path) -> None:
    (folder / "3.flac").unlink()


BAD_RECORDINGS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "empty": (empty, ["'3.flac'", "no samples"]),
    "truncated": (truncated, ["'3.flac'"]),
    "unknown characters": (unknown_characters, [f"'{COUNT - 1}.flac'", "日"]),
    "missing": (no_file, ["'3.flac'", "no such file"]),
}


def assert_refused(done: Finished, words: list[str]) -> None:
    assert done.code == 2, done.out + done.err
    assert len(done.errors) == 1, done.err
    for word in words:
        assert word in done.errors[0]


@pytest.mark.parametrize("case", BAD_RECORDINGS)
def test_a_recording_that_cannot_be_used_stops_the_run_or_is_left_out_by_name(
    place: Place, case: str
) -> None:
    write_recordings(place.path / "in")
    spoil, words = BAD_RECORDINGS[case]
    spoil(place.path / "in")
    assert_refused(place.run_in_process("train", *SPEECH), [*words, "data.on_bad=skip"])
    assert not (place.path / "runs").exists()
    done = place.run_in_process("train", *SPEECH, "data.on_bad=skip")
    assert done.code == 0, done.out + done.err
    assert "1 recording cannot be used" in done.out + done.err
    assert words[0] in done.out + done.err


def test_channels_are_mixed_and_rates_resampled_and_the_rates_are_said(place: Place) -> None:
    write_recordings(place.path / "in")
    draw = np.random.default_rng(1)
    replace_recording(place.path / "in", draw.normal(0, 0.1, (48_000, 2)), 48_000)
    done = place.run_in_process("train", *SPEECH)
    assert done.code == 0, done.out + done.err
    assert f"{COUNT - 1} at 8000 Hz, 1 at 48000 Hz" in done.out + done.err
    assert done.result["is_verified"]


def annotations(folder: Path, split: str) -> tuple[Path, dict[str, list[dict[str, object]]]]:
    path = folder / "annotations" / f"instances_{split}2017.json"
    return path, json.loads(path.read_text())


def no_picture(folder: Path) -> None:
    (folder / "train" / "0000.png").unlink()


def three_numbers(folder: Path) -> None:
    path, data = annotations(folder, "train")
    data["annotations"][0]["bbox"] = [1, 2, 3]
    path.write_text(json.dumps(data))


def twice(folder: Path) -> None:
    path, data = annotations(folder, "train")
    data["images"].append({**data["images"][0], "id": 999})
    path.write_text(json.dumps(data))


BAD_PICTURES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing": (no_picture, ["0000.png"]),
    "three numbers": (three_numbers, [".png", "[1, 2, 3]"]),
    "twice": (twice, [".png", "twice"]),
}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_annotations_that_cannot_be_used_stop_the_run(place: Place, case: str) -> None:
    write_coco(place.path / "in", pictures(24))
    spoil, words = BAD_PICTURES[case]
    spoil(place.path / "in")
    assert_refused(place.run_in_process("train", *DETECTION), words)
    assert not (place.path / "runs").exists()


def test_a_class_of_the_test_split_alone_is_named(place: Place) -> None:
    folder = write_coco(place.path / "in", pictures(24))
    shutil.move(folder / "val", folder / "test")
    path, data = annotations(folder, "val")
    path.unlink()
    data["categories"].append({"id": 99, "name": "quokka"})
    data["annotations"][0]["category_id"] = 99
    (folder / "annotations" / "instances_test2017.json").write_text(json.dumps(data))
    done = place.run_in_process("train", *DETECTION)
    assert done.code == 0, done.out + done.err
    assert "classes without a box in the training split cannot be learnt: 'quokka'" in done.out + done.err
