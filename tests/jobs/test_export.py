"""A trained model is exported, compared, recorded in MLflow, and run where there is neither Shoal nor torch."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from running import ROOT, Place

GUIDE = ROOT / "docs" / "guides" / "export.md"
ALONE = ("numpy", "numpy.libs", "onnxruntime")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A CSV file with a category, and numbers of which some are missing."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.normal(10, 3, 600), "color": draw.choice(["red", "blue"], 600)})
    frame["sold"] = np.where((frame["size"] > 10) & (frame.color == "red"), "yes", "no")
    frame.loc[::9, "size"] = np.nan
    frame.to_csv(tmp_path / "shop.csv", index=False)
    return tmp_path


@pytest.fixture
def trained(place: Place, shop: Path) -> str:
    options = ("data.source=csv:shop.csv", "data.label=sold", "train.epochs=1", "scale.num_workers=0")
    return str(place.train("classification.yaml", "run_name=shop", *options)["run_folder"])


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A Python that has onnxruntime and numpy alone."""
    made = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    (packages,) = made.glob("lib/*/site-packages")
    for name in ALONE:
        (packages / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    return made / "bin" / "python"


@pytest.mark.long
def test_a_run_is_exported_with_nothing_but_its_name_and_runs_without_shoal(
    place: Place, trained: str, bare_python: Path
) -> None:
    done = place.run("export", trained)
    assert done.code == 0, done.out + done.err
    result = done.result
    assert (result["status"], result["split"], result["is_delivered"]) == ("FINISHED", "test", True)
    assert set(result["formats"]) == {"onnx", "torch_export", "safetensors"}
    assert max(one["largest_difference"] for one in result["formats"].values()) <= 1e-5
    folder = Path(result["run_folder"])
    for one in result["formats"].values():
        assert (folder / one["file"]).is_file()

    from mlflow import MlflowClient

    client = MlflowClient(result["tracking_uri"])
    run = client.get_run(result["mlflow_run_id"])
    assert run.data.params["model"] == trained
    assert run.data.tags["shoal.job"] == "export"
    assert run.data.metrics["export/onnx_largest_difference"] <= 1e-5
    listed = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "export/onnx")}
    assert listed == {f"export/onnx/{path.name}" for path in (folder / "export" / "onnx").iterdir()}

    [script, *_] = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (place.path / "load.py").write_text(script)
    ran = subprocess.run(
        [bare_python, "-I", "load.py", folder / "export" / "onnx"],
        cwd=place.path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        name, found, expected = re.fullmatch(r"(\w+) (\[.*\]) expected (\[.*\])", line).groups()  # type: ignore[union-attr]
        if name == "prediction":
            assert found == expected
        else:
            np.testing.assert_allclose(eval(found), eval(expected), rtol=0, atol=1e-5)
    for module in ("torch", "shoal"):
        missing = subprocess.run([bare_python, "-I", "-c", f"import {module}"], capture_output=True)
        assert missing.returncode != 0

    (place.path / "shop.csv").unlink()
    again = place.run("export", trained, "export.formats=onnx")
    assert again.code == 0, again.out + again.err
    assert again.result["split"] == "golden"
    assert "compared on the golden rows that the model carries" in again.err + again.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("no-such-run",), "model 'no-such-run' is not known"),
        (("run", "export.formats=onnx,tensorrt"), "tensorrt"),
        (("run", "export.format=onnx"), "did you mean 'export.formats'"),
        (("run", "export.formats=[]"), "name at least one format"),
        ((), "required: MODEL"),
    ],
)
def test_bad_input_is_one_line(place: Place, arguments: tuple[str, ...], line: str) -> None:
    done = place.run_in_process("export", *arguments)
    assert done.code == 2
    [error] = done.errors
    assert line in error
    assert not (place.path / "runs").exists()


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    done = place.run_in_process("export", "run")
    assert done.code == 2
    [error] = done.errors
    assert "export.formats=onnx needs the package onnxscript" in error
    assert "pip install 'shoal[export]'" in error
