"""Batch prediction as a user runs it: without Ray, by actors, killed and started again."""

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from running import Place, mlflow_record
from saved_model import write_table

ONE, TWO = "scale.num_workers=0", "scale.num_workers=2"


def write_rows(path: Path, rows: int, groups: int) -> pd.DataFrame:
    table = write_table(path.with_suffix(".csv"), rows, seed=1)
    table["size"] = table["size"].map(str)
    table.loc[rows // 2, "size"] = "odd"
    pq.write_table(pa.Table.from_pandas(table), path, row_group_size=rows // groups)
    return table


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_run_predicts_with_and_without_ray_alike_and_is_in_mlflow(shared: Place, saved: Path) -> None:
    model, table = str(saved), write_rows(shared.path / "in.parquet", 400, 8)
    alone = shared.run("predict", model, "parquet:in.parquet", "alone", ONE)
    assert alone.code == 0, alone.out + alone.err
    result = alone.result
    assert (result["rows"], result["rejected"], result["parts"]) == (400, 1, 8)
    assert f"rejected: 1 of 400 rows, with the reason in {shared.path}/alone/_rejected.jsonl" in alone.out
    run, _ = mlflow_record(result["tracking_uri"], result["mlflow_run_id"])
    assert run.data.metrics["predict/rows"] == 400
    assert run.data.tags["model"] == model
    assert run.data.tags["model_digest"] == result["model_digest"]

    done = shared.run("predict", model, "parquet:in.parquet", "actors", TWO)
    assert done.code == 0, done.out + done.err
    parts = sorted((shared.path / "alone").glob("part-*"))
    assert len(parts) == 8
    for part in parts:
        one, other = pd.read_parquet(part), pd.read_parquet(shared.path / "actors" / part.name)
        assert one["color"].tolist() == other["color"].tolist()
        np.testing.assert_allclose(
            np.stack(one["probabilities"]), np.stack(other["probabilities"]), atol=1e-5
        )
    found = pd.read_parquet([*parts])
    assert found["color"].tolist() == table["color"].drop(200).tolist()
    [bad] = (shared.path / "actors" / "_rejected.jsonl").read_text().splitlines()
    assert json.loads(bad)["row"] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "csv:rows.csv", "out"), "model 'nothing' is not known"),
        (("MODEL", "csv:none.csv", "out"), "no file 'none.csv'"),
        (("MODEL", "rows.csv", "out"), "did you mean 'csv:rows.csv'"),
        (("MODEL", "csv:rows.csv", "taken"), "holds other files"),
        (("MODEL", "csv:rows.csv", "out", "predict.format=xls"), "predict.format"),
        (("MODEL", "csv:rows.csv", "out", "predict.temperature=0"), "of models that generate text"),
    ],
)
def test_bad_input_is_one_error_before_anything_starts(
    place: Place, saved: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_table(place.path / "rows.csv")
    (place.path / "taken").mkdir()
    (place.path / "taken" / "mine.txt").write_text("mine")
    named = [str(saved) if text == "MODEL" else text for text in arguments]
    done = place.run_in_process("predict", *named)
    assert done.code == 2
    [error] = done.errors
    assert message in error
    assert not (place.path / "out").exists()
    assert not (place.path / "runs").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model, that no training made."""
    from saved_model import package
    from shoal.storage.run_folder import MODEL, MODEL_CARD, RunFolder

    path = tmp_path_factory.mktemp("saved")
    write_table(path / "rows.csv")
    package(path, f"csv:{path}/rows.csv")
    folder = RunFolder(str(path / "run"))
    folder.create_identity(
        name="run", experiment="shoal", tracking_uri="sqlite:///none.db", artifact_location=None
    )
    folder.put_folder(path / "model", MODEL, last=MODEL_CARD)
    return path / "run"


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_again_and_again_it_ends_with_the_files_of_one_that_was_not(
    place: Place, saved: Path, workers: int
) -> None:
    write_rows(place.path / "in.parquet", 400_000, 40)
    asked = (str(saved), "parquet:in.parquet")
    twin = place.run("predict", *asked, "twin", f"scale.num_workers={workers}")
    assert twin.code == 0, twin.out + twin.err
    draw, kills = random.Random(workers), 0
    for _ in range(4):
        before = len(list((place.path / "out").glob("part-*")))
        process = place.start("predict", *asked, "out", f"scale.num_workers={workers}")
        until = time.monotonic() + 120
        while len(list((place.path / "out").glob("part-*"))) <= before + 2 and time.monotonic() < until:
            time.sleep(0.01)
            if process.poll() is not None:
                break
        time.sleep(draw.random() / 5)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    done = place.run("predict", *asked, "out", f"scale.num_workers={workers}")
    assert done.code == 0, done.out + done.err
    assert content(place.path / "out") == content(place.path / "twin")
