"""A trained model is compressed, and its variants are used as any other model: evaluated, registered, kept if worse."""

import sys
from pathlib import Path

import pytest

from running import Place, eventually
from shoal.storage.run_folder import RunFolder

TRAINED = ("digits.yaml", "run_name=d", "train.epochs=3", "scale.num_workers=0", "model.width=256")
OPTIONS = ("data.test_fraction=0.15", "track.registered_model_name=null")


@pytest.mark.long
def test_a_pruned_variant_is_used_as_any_model_and_a_bad_one_is_kept_apart(place: Place) -> None:
    trained = str(place.train(*TRAINED, *OPTIONS)["run_folder"])
    named = "track.registered_model_name=small"
    settings = ("compress.prune=0.5", "compress.quantize=int8", "compress.max_loss_of=0.05", named)
    done = place.run("compress", trained, *settings)
    assert done.code == 0, done.out + done.err
    result = done.result
    pruned, quantized = (result["variants"][name] for name in ("prune-0.5", "prune-0.5-int8"))
    assert pruned["rejected"] is None
    assert pruned["variant"]["bytes"] < pruned["original"]["bytes"] / 2
    assert (Path(quantized["run_folder"]) / quantized["file"]).is_file()

    from mlflow import MlflowClient

    client = MlflowClient(result["tracking_uri"], result["tracking_uri"])
    versions = {version.run_id: version for version in client.search_model_versions("name='small'")}
    version = versions.pop(RunFolder(pruned["run_folder"]).tracked().run_id)
    run = client.get_run(version.run_id)
    assert run.data.tags["mlflow.parentRunId"] == result["mlflow_run_id"]
    assert run.data.metrics["test/accuracy"] == pytest.approx(pruned["variant"]["metrics"]["accuracy"])
    assert run.data.metrics["compress/bytes"] == pruned["variant"]["bytes"]
    pictures = client.list_artifacts(result["mlflow_run_id"], "pictures")
    assert [picture.path for picture in pictures] == ["pictures/trade_off.png"]
    card = (Path(pruned["run_folder"]) / "model" / "README.md").read_text()
    assert "after pruning of 50% of the channels" in card

    evaluated = place.run("evaluate", f"models:/small/{version.version}")
    assert evaluated.code == 0, evaluated.out + evaluated.err
    assert evaluated.result["metrics"] == pytest.approx(pruned["variant"]["metrics"])

    # Which of them is quick enough depends on the machine; a version of 8-bit integers is one that loads.
    assert len(versions) == (quantized["rejected"] is None)
    for other in versions.values():
        evaluated = place.run("evaluate", f"models:/small/{other.version}")
        assert evaluated.result["metrics"] == pytest.approx(quantized["variant"]["metrics"])
    again = place.run_in_process("compress", quantized["run_folder"], "compress.prune=0.5")
    assert again.code == 2
    assert "a model of 8-bit integers is not compressed again" in again.errors[0]
    whole = place.run_in_process("export", quantized["run_folder"])
    assert whole.code == 2
    assert "set export.formats=onnx" in whole.errors[0]

    bad = place.run("compress", trained, "compress.prune=0.98", "compress.epochs=0", named)
    assert bad.code == 0, bad.out + bad.err
    [rejected] = bad.result["variants"].values()
    assert "accuracy fell by" in rejected["rejected"]
    assert "not registered: accuracy fell by" in bad.out
    assert len(client.search_model_versions("name='small'")) == 1 + len(versions)
    kept = RunFolder(rejected["run_folder"])
    assert kept.exists("model/MLmodel")
    assert "accuracy fell" in client.get_run(kept.tracked().run_id).data.tags["shoal.rejected"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("prune-0.5", ("compress.prune=0.5", "compress.epochs=4")),
        ("distill-width-32", ("compress.distill={width: 32}", "compress.distill_epochs=6")),
    ],
)
def test_a_job_that_was_killed_goes_on_to_the_same_variant(
    place: Place, name: str, how: tuple[str, ...]
) -> None:
    trained = str(place.train(*TRAINED, *OPTIONS)["run_folder"])
    settings = (trained, *how, "compress.max_loss_of=1")
    killed = place.start("compress", *settings)
    checkpoints = place.path / "runs" / "compressions" / f"compress-d-{name}-1" / "checkpoints"
    eventually(lambda: any(checkpoints.glob("step-*/manifest.json")), 60, "a checkpoint of fine-tuning")
    killed.kill()
    killed.communicate()
    assert not (checkpoints.parent / "model" / "MLmodel").exists()

    again = place.run("compress", *settings)
    assert again.code == 0, again.out + again.err
    assert "resuming at step" in again.out
    [variant] = again.result["variants"].values()
    assert variant["run_folder"] == str(checkpoints.parent)
    assert not checkpoints.exists()
    whole = place.run("compress", *settings, "storage_path=whole")
    assert whole.code == 0, whole.out + whole.err
    assert "resuming" not in whole.out
    [expected] = whole.result["variants"].values()
    weights, same = (Path(one["run_folder"]) / one["file"] for one in (variant, expected))
    assert weights.read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("no-such-run", "compress.prune=0.5"), "model 'no-such-run' is not known"),
        (("run", "compress.prune=1.2"), "compress.prune=1.2"),
        (("run", "compress.prune=0.3,1.2"), "compress.prune='1.2'"),
        (("run", "compress.prune=half"), "compress.prune='half'"),
        (("run", "compress.distill={width: 0}"), "compress.distill.width=0"),
        (("run", "compress.distill={heads: 2}"), "unknown key 'compress.distill.heads'"),
        (("run",), "set compress.prune=0.5, compress.quantize=int8 or compress.distill.width=32"),
        (("run", "compress.prune=0.5", "compress.method=2:4"), "compress.method=2:4 is sparsity"),
        (("run", "compress.quantize=int4"), "int4"),
        (("run", "compress.prune=0.5", "compress.gradual=true"), "compress.prune=0.5: give shares that rise"),
        (
            ("run", "compress.prune=0.5,0.2", "compress.gradual=true"),
            "compress.prune=0.5,0.2: give shares that",
        ),
        (("run", "compress.ratio=0.5"), "unknown key 'compress.ratio'"),
        (("compress.prune=0.5", "compress.prune=0.5"), "model 'compress.prune=0.5' is not known"),
        ((), "required: MODEL"),
    ],
)
def test_bad_input_is_one_line(place: Place, arguments: tuple[str, ...], line: str) -> None:
    done = place.run_in_process("compress", *arguments)
    assert done.code == 2
    [error] = done.errors
    assert line in error
    assert not (place.path / "runs").exists()


@pytest.mark.long
def test_a_student_is_pruned_and_quantized_and_used_as_any_model(place: Place) -> None:
    trained = str(place.train(*TRAINED, *OPTIONS)["run_folder"])
    wider = place.run_in_process("compress", trained, "compress.distill={width: 512}")
    assert wider.code == 2
    [error] = wider.errors
    assert "compress.distill.width=512 is larger than the model's, whose model.width is 256" in error
    assert not (place.path / "runs" / "compressions").exists()

    steps = ("compress.distill={width: 64}", "compress.prune=0.25,0.5", "compress.quantize=bf16")
    done = place.run("compress", trained, *steps, "compress.max_loss_of=1")
    assert done.code == 0, done.out + done.err
    student, pruned = "distill-width-64", ("distill-width-64-prune-0.25", "distill-width-64-prune-0.5")
    variants = done.result["variants"]
    assert list(variants) == [student, pruned[0], f"{pruned[0]}-bf16", pruned[1], f"{pruned[1]}-bf16"]
    parameters = [variants[name]["variant"]["parameters"] for name in (student, *pruned)]
    assert parameters == sorted(parameters, reverse=True)
    for name in (student, f"{pruned[1]}-bf16"):
        evaluated = place.run("evaluate", variants[name]["run_folder"])
        assert evaluated.code == 0, evaluated.out + evaluated.err
        assert evaluated.result["metrics"] == pytest.approx(variants[name]["variant"]["metrics"])


@pytest.mark.long
def test_a_student_too_narrow_to_be_pruned_is_refused_before_anything_is_made(place: Place) -> None:
    trained = str(place.train(*TRAINED, *OPTIONS, "train.max_steps=1")["run_folder"])
    done = place.run_in_process("compress", trained, "compress.distill={width: 16}", "compress.prune=0.3")
    assert done.code == 2
    [error] = done.errors
    assert "compress.prune=0.3 removes nothing" in error
    assert not (place.path / "runs" / "compressions").exists()


@pytest.mark.long
def test_a_model_without_held_out_rows_is_refused_before_anything_is_made(place: Place) -> None:
    nothing = ("data.test_fraction=0", "data.validation_fraction=0", "train.max_steps=1")
    trained = str(place.train(*TRAINED, *OPTIONS, *nothing)["run_folder"])
    done = place.run_in_process("compress", trained, "compress.prune=0.5")
    assert done.code == 2
    [error] = done.errors
    assert "has no held-out rows" in error
    assert not (place.path / "runs" / "compressions").exists()


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # as if it were not installed
    done = place.run_in_process("compress", "run", "compress.prune=0.5")
    assert done.code == 2
    [error] = done.errors
    assert "needs the package torch-pruning" in error
    assert "pip install 'shoal[compress]'" in error
