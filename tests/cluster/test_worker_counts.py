"""The result does not depend on the machines: worker counts, residency and the way of reading change nothing."""

import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from running import ROOT, Place, Trace, assert_close, assert_equal

SETTINGS = (
    "data.source=synthetic:classification?rows=3000&features=100",
    "train.epochs=4",
    "run_name=run",
    "model.args={dropout: 0.2}",
)


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    place = Place(tmp_path_factory.mktemp("single_process"), {})
    place.train(*SETTINGS, "scale.num_workers=0")
    return Trace.of(place.folder("run"))


@pytest.mark.long
def test_four_workers_on_fractional_cpus_agree_with_none(shared: Place, single_process: Trace) -> None:
    """That equal counts agree bit for bit is proved where processes are killed (test_chaos.py)."""
    shared.train(*SETTINGS, "scale.num_workers=4", "scale.cpus_per_worker=0.5")
    assert_close(Trace.of(shared.folder("run")), single_process)


@pytest.mark.long
def test_streamed_through_ray_data_agrees_with_resident(shared: Place, single_process: Trace) -> None:
    result = shared.train(*SETTINGS, "data.resident=false", "train.epochs=1")
    streamed = Trace.of(shared.folder("run")).points
    losses = {step: value for (key, step), value in streamed.items() if key == "train/loss"}
    assert len(losses) == result["steps"]
    assert losses == pytest.approx(
        {step: single_process.points["train/loss", step] for step in losses}, rel=1e-4
    )
    assert streamed["val/loss", result["steps"]] == pytest.approx(
        single_process.points["val/loss", result["steps"]], rel=1e-4
    )


@pytest.mark.long
def test_a_run_resumes_on_another_number_of_workers(shared: Place, single_process: Trace) -> None:
    process = shared.start("train", *SETTINGS, "scale.num_workers=2", "checkpoint.every_steps=20")
    shared.wait_for_step(process, "run", 30)
    process.kill()
    process.communicate()
    shared.train(*SETTINGS, "scale.num_workers=0")
    assert_close(Trace.of(shared.folder("run")), single_process)


def train_with_ray_datas_readers(
    shared: Place, monkeypatch: pytest.MonkeyPatch, *settings: str, code: int = 0
) -> None:
    """Train in the experiment `large`, with no source small enough for the driver, and end with an exit code."""
    for name, value in shared.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(shared.path)
    monkeypatch.setattr("shoal.data.sources.base.IN_DRIVER_BYTES", 0)
    monkeypatch.setattr(sys, "argv", ["train.py", *settings, "scale.num_workers=1", "experiment_name=large"])
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(ROOT) / "jobs" / "train.py"), run_name="__main__")
    assert ended.value.code == code


NARROW = """
from torch import nn

class Narrow(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.head = nn.Linear(inputs[0], outputs - 1)

    def forward(self, x):
        return self.head(x)
"""


def test_check_reads_large_data_on_the_cluster_and_finds_what_training_would(
    shared: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended at once, and said that a model which does not fit the data was sound."""
    random = np.random.default_rng(0)
    kinds = random.choice(["a", "b", "c"], 300)
    shared.path.joinpath("narrow.py").write_text(NARROW)
    pd.DataFrame({"size": random.normal(size=300), "kind": kinds}).to_csv(
        shared.path / "large.csv", index=False
    )
    settings = ("--check", "data.source=csv:large.csv", "data.label=kind")
    train_with_ray_datas_readers(shared, monkeypatch, *settings)
    out = capsys.readouterr().out
    assert "on the cluster" in out
    assert "the config is sound" in out
    train_with_ray_datas_readers(shared, monkeypatch, *settings, "model.name=narrow:Narrow", code=2)
    assert "error: model.name='narrow:Narrow'" in capsys.readouterr().err
    assert not (shared.path / "runs" / "large").exists()


@pytest.mark.long
def test_large_sources_through_ray_datas_readers_give_the_same_as_small_ones(
    shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet parts of different types, read by Ray Data because the limit for the driver is set to nothing."""
    random = np.random.default_rng(0)
    folder = shared.path / "parts" / "inner"
    folder.mkdir(parents=True)
    for number in range(3):
        rows = 200 + number
        frame = pd.DataFrame(
            {
                "size": random.normal(size=rows) if number else random.integers(0, 9, rows).astype(float),
                "city": random.choice(["Oslo", "Lima", None], rows),
                "kind": random.choice(["a", "b"], rows),
            }
        )
        frame.to_parquet(folder.parent / f"{number}.parquet" if number else folder / "0.parquet")
    settings = ("data.source=parquet:parts", "data.label=kind", "train.epochs=2", "run_name=run")
    shared.train(*settings, "scale.num_workers=0")
    train_with_ray_datas_readers(shared, monkeypatch, *settings)
    assert_equal(Trace.of(shared.folder("run")), Trace.of(shared.folder("run", "large")))


@pytest.mark.long
def test_images_of_a_large_hub_data_set_are_decoded_by_ray_data_as_by_the_driver(
    shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def rows(count: int) -> datasets.Dataset:
        pixels = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        images = [Image.fromarray(image) for image in pixels]
        return datasets.Dataset.from_dict(
            {"image": images, "label": draw.integers(0, 2, count)}, features=features
        )

    datasets.DatasetDict({"train": rows(60), "test": rows(12)}).save_to_disk(str(shared.path / "hub"))
    settings = (
        "data.source=huggingface:hub", "data.label=label", "task=image_classification", "run_name=run",
        "model.name=resnet", "model.width=4", "model.depth=8", "data.global_batch_size=8", "train.epochs=1",
    )  # fmt: skip
    shared.train(*settings, "scale.num_workers=0")
    train_with_ray_datas_readers(shared, monkeypatch, *settings)
    assert_equal(Trace.of(shared.folder("run")), Trace.of(shared.folder("run", "large")))
