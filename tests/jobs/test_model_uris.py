"""Each job on a model, named in each of the ways a model has, the ones that are downloaded to a passing folder too."""

from pathlib import Path

import pytest

from running import Place
from saved_model import write_table
from trained_model import register

JOBS = {
    "evaluate": (),
    "predict": ("csv:rows.csv", "scores", "scale.num_workers=0"),
    "export": ("export.formats=safetensors",),
    "compress": ("compress.prune=0.5", "compress.epochs=0", "compress.max_loss_of=1"),
    "explain": ("explain.worst=1", "explain.random=1"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A working directory with a table and a registered model of it, and the names of the model."""
    path = tmp_path_factory.mktemp("models")
    write_table(path / "rows.csv")
    folder, number = register(path, "one", "shop", "csv:rows.csv", width=32)
    return path, {"version": f"models:/shop/{number}", "run": f"runs:/{folder.tracked().run_id}"}


@pytest.mark.parametrize("kind", ["version", "run"])
@pytest.mark.parametrize("job", JOBS)
def test_a_job_takes_a_model_of_mlflow(
    shared: tuple[Path, dict[str, str]], tmp_path: Path, job: str, kind: str
) -> None:
    path, names = shared
    place = Place(path, {"MLFLOW_TRACKING_URI": f"sqlite:///{path}/mlflow.db"})
    arguments = [str(tmp_path / one) if one == "scores" else one for one in JOBS[job]]
    done = place.run_in_process(job, names[kind], *arguments)
    assert done.code == 0, done.out + done.err
    assert done.result["is_delivered"]
    if job == "predict":
        assert list((tmp_path / "scores").glob("part-*.parquet"))
