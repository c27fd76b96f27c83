"""Bad input: exit 2, one `error:` line with value and remedy, nothing started and no run created."""

import json
import socket
from pathlib import Path

import pytest

from running import Place

FILES = {
    "one.csv": "a,target\n1,0\n2,0\n3,0\n",
    "nan.csv": "a,target\n1,0\n2,\n3,1\n",
    "headers.csv": "a,target\n",
    "empty.csv": "",
    "bad.yaml": "a: [1\nb: }\n",
    "mine.py": "number = 3\n\ndef text(inputs):\n    return 'no module'\n",
}

CASES = {
    "unknown key": (["optim.lrr=1"], ["'optim.lrr'", "did you mean 'optim.lr'"]),
    "wrong type": (["train.epochs=many"], ["train.epochs='many'", "integer"]),
    "negative lr": (["optim.lr=-1"], ["optim.lr=-1", "greater than 0"]),
    "missing file": (["data.source=csv:none.csv"], ["none.csv"]),
    "missing label": (["data.source=csv:one.csv", "data.label=tarjet"], ["did you mean 'target'"]),
    "empty file": (["data.source=csv:empty.csv"], ["empty"]),
    "no rows": (["data.source=csv:headers.csv"], ["0 rows"]),
    "one class": (["data.source=csv:one.csv", "data.global_batch_size=2"], ["one class"]),
    "NaN label": (["data.source=csv:nan.csv", "data.global_batch_size=2"], ["NaN", "1 of 3 rows"]),
    "batch too large": (["data.global_batch_size=99999"], ["99999", "1426"]),
    "too many GPUs": (["scale.use_gpu=true", "scale.num_workers=64"], ["64 GPUs"]),
    "too many CPUs": (["scale.num_workers=64"], ["scale.cpus_per_worker"]),
    "unwritable storage": (["storage_path=mine.py/runs"], ["storage_path", "cannot be written"]),
    "builder not callable": (["model.name=mine:number"], ["cannot be called"]),
    "builder returns no module": (["model.name=mine:text"], ["torch.nn.Module"]),
    "YAML does not parse": (["bad.yaml"], ["bad.yaml", "line 2"]),
    "tracking URI without a scheme": (["track.tracking_uri=host:5000"], ["write http://host:5000"]),
    "registered name": (["track.registered_model_name=a/b"], ["registered_model_name='a/b'", "no slash"]),
    "apostrophe": (["track.registered_model_name=it's"], ["apostrophe"]),
    "no boxes": (["task=object_detection", "model.name=detector"], ["sklearn:digits", "boxes:PATH"]),
    "no annotations": (["task=object_detection", "data.source=boxes:."], ["boxes:.", "holds no annotations"]),
    "unknown target": (["train.target={val/acc: 0.9}"], ["did you mean 'val/accuracy'"]),
}


@pytest.mark.parametrize("case", CASES)
def test_training_refuses(place: Place, case: str) -> None:
    for name, text in FILES.items():
        (place.path / name).write_text(text)
    arguments, words = CASES[case]
    done = place.run_in_process("train", *arguments)
    assert done.code == 2, done.out + done.err
    assert len(done.err.splitlines()) == len(done.errors) == 1, done.err
    for word in words:
        assert word in done.errors[0]
    assert not (place.path / "runs").exists()
    assert not (place.path / "mlflow.db").exists()


def test_a_cluster_that_is_gone_is_refused_before_anything_starts(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        place.env["RAY_ADDRESS"] = f"127.0.0.1:{gone.getsockname()[1]}"
        for job, settings in (
            ("train", ["train.epochs=1"]),
            ("tune", ["optim.lr=0.1,0.2", "train.epochs=1"]),
        ):
            done = place.run_in_process(job, *settings)
            assert done.code == 2, done.out + done.err
            assert "the Ray cluster at" in done.errors[0]
            assert done.seconds < 30
    assert list(place.path.iterdir()) == []


@pytest.mark.parametrize("model", ["runs/nothing", "runs:/0123", "models:/nobody@champion"])
def test_evaluation_refuses_an_unknown_model(place: Place, model: str) -> None:
    done = place.run_in_process("evaluate", model)
    assert done.code == 2, done.out + done.err
    assert len(done.errors) == 1
    assert "not known" in done.errors[0]


def test_check_validates_and_starts_nothing(place: Place) -> None:
    done = place.run("train", "--check", "train.epochs=3")
    assert done.code == 0, done.err
    assert "17,226 parameters" in done.out
    assert list(place.path.iterdir()) == []


def test_help_names_every_key(place: Place) -> None:
    from shoal.config.schema import fields
    from shoal.runs.config import RunConfig

    done = place.run("train", "--help")
    assert done.code == 0
    for key, _ in fields(RunConfig):
        assert f"  {key} " in done.out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("trained"), {})
    place.train("scale.num_workers=0", "train.epochs=8", "run_name=run")
    return place


def test_a_name_that_exists_with_if_exists_fail(trained: Place) -> None:
    done = trained.run_in_process("train", "run_name=run", "if_exists=fail")
    assert done.code == 2
    assert "if_exists=fail" in done.errors[0]


def test_another_config_under_the_same_name(trained: Place) -> None:
    done = trained.run_in_process("train", "run_name=run", "optim.lr=0.5", "train.epochs=8")
    assert done.code == 2
    assert "optim.lr: 0.001 then, 0.5 now" in done.errors[0]


def test_the_same_command_again_reports_the_finished_run(trained: Place) -> None:
    result = trained.train("run_name=run", "train.epochs=8", "scale.num_workers=0")
    assert result["run_name"] == "run"
    assert result["attempt"] == 1


@pytest.mark.parametrize("damage", ["", '{"key": "0'], ids=["empty", "truncated"])
def test_damaged_files_of_a_run_folder_are_named_with_a_remedy(trained: Place, damage: str) -> None:
    """Through each job that reads them; each file is put back afterwards."""
    folder = trained.path / "runs" / "shoal" / "run"
    resume = ("train", "run_name=run", "train.epochs=8", "scale.num_workers=0")
    description = next(folder.rglob("description.json")).relative_to(folder)
    cases = [
        ("run.json", resume),
        ("result.json", resume),
        ("attempts/0001/lease.json", resume),
        ("run.json", ("sync", str(folder))),
        ("attempts/0001/lease.json", ("sync", str(folder))),
        ("metadata.json", ("sync", str(folder))),
        (str(description), ("evaluate", str(folder))),
    ]
    for name, command in cases:
        sound = (folder / name).read_bytes()
        (folder / name).write_text(damage)
        done = trained.run_in_process(*command)
        (folder / name).write_bytes(sound)
        assert done.code == 2, (name, command, done.out, done.err)
        assert len(done.errors) == 1
        assert name.rpartition("/")[2] in done.errors[0]
        assert "Traceback" not in done.err


def test_damaged_files_of_a_sweep_are_named_with_a_remedy(trained: Place) -> None:
    folder = trained.path / "runs" / "shoal" / "swept"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"key": "0')
    command = ("tune", "run_name=swept", "optim.lr=0.1,0.2", "train.epochs=1")
    done = trained.run_in_process(*command)
    assert done.code == 2, done.out + done.err
    assert "swept/run.json' is damaged" in done.errors[0]
    assert "if_exists=new" in done.errors[0]


@pytest.mark.long
def test_a_damaged_record_of_tracking_does_not_stop_training(trained: Place) -> None:
    folder = trained.path / "runs" / "shoal" / "run"
    known = json.loads((folder / "tracked.json").read_text())["run_id"]
    (folder / "result.json").unlink()
    (folder / "tracked.json").write_text('{"run_id')
    (folder / "journal" / "shipped.json").write_text("")
    result = trained.train("run_name=run", "train.epochs=8", "scale.num_workers=0")
    assert result["mlflow_run_id"] == known


@pytest.mark.long
def test_corrupt_checkpoints(trained: Place) -> None:
    """The newest one is named and the one before it used; with none left it is an error."""
    folder = trained.path / "runs" / "shoal" / "run"
    (folder / "result.json").unlink()
    checkpoints = sorted((folder / "checkpoints").iterdir())
    _spoil(checkpoints[-1])
    done = trained.run("train", "run_name=run", "train.epochs=8", "scale.num_workers=0")
    assert done.code == 0, done.err
    assert f"warning: checkpoint '{checkpoints[-1]}' is corrupt" in done.err
    (folder / "result.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        _spoil(checkpoint)
    done = trained.run("train", "run_name=run", "train.epochs=8", "scale.num_workers=0")
    assert done.code == 2, done.out + done.err
    assert "corrupt" in done.errors[0]


def _spoil(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
