"""Shoal as another project has it: installed by pip into a fresh environment, in an empty folder, without a clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import JOB_TIMEOUT_S, RAY_ENV, ROOT

pytestmark = pytest.mark.long


SCRIPT = """\
import numpy as np, pandas as pd, shoal
from torch import nn
frame = pd.DataFrame({"x": np.random.default_rng(0).uniform(-1, 1, 1000)}).assign(y=lambda rows: 3 * rows.x**2)
class Net(nn.Sequential):
    def __init__(self, inputs, outputs, width):
        super().__init__(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
def absolute(outputs, targets):
    return (outputs.squeeze(1) - targets).abs()
if __name__ == "__main__":
    config = {"task": "regression", "data.source": frame, "data.label": "y", "model.name": Net, "train.loss": absolute}
    result = shoal.train(config, **{"model.width": 32, "optim.lr": 0.01, "scale.num_workers": 2})
    space = {"optim.lr": shoal.loguniform(1e-3, 1e-1), "model.width": [8, 32]}
    best = shoal.tune(config, space=space, **{"tune.num_samples": 2}).best
    print(result.metrics["test/r2"], best.params, best.model.predict(frame.head(3)), sep="\\n")
"""

# Runs the cells of cells.json in a kernel of the environment's Python; prints what they print and display.
NOTEBOOK = """
import json
import nbformat
from nbclient import NotebookClient

cells = [nbformat.v4.new_code_cell(source) for source in json.load(open("cells.json"))]
notebook = nbformat.v4.new_notebook(cells=cells)
NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
outputs = [output for cell in notebook.cells for output in cell.outputs]
print(json.dumps({
    "printed": "".join(output.text for output in outputs if output.get("name") == "stdout"),
    "shown": [output.data for output in outputs if output.output_type == "execute_result"],
}))
"""


class Project:
    """An empty folder, and an environment that has Shoal."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.folder, self._programs = folder, environment / "bin"
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")
        }
        self._variables = {**kept, **RAY_ENV, "PATH": f"{self._programs}{os.pathsep}{os.environ['PATH']}"}

    def run(self, program: str, *arguments: str, typed: str | None = None) -> str:
        """Return what a program of the environment prints."""
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.folder,
            env=self._variables,
            input=typed,
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh virtual environment: Shoal by pip, what it depends on from the one of the tests."""
    made = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    source = made / "source"  # setuptools leaves files in it
    shutil.copytree(ROOT / "platform", source / "platform", symlinks=True)
    shutil.copytree(ROOT / "jobs" / "configs", source / "jobs" / "configs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip, quiet = [sys.executable, "-m", "pip"], ["--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "-w", made, source], check=True)
    (wheel,) = made.glob("shoal-*.whl")
    subprocess.run([*pip, "--python", made / "bin" / "python", "install", *quiet, wheel], check=True)
    shutil.rmtree(source)
    # The Shoal of the tests stays unknown: a .pth file of a folder that another one names is not read.
    (packages,) = made.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return made


@pytest.fixture
def project(tmp_path: Path, environment: Path) -> Project:
    return Project(tmp_path, environment)


@pytest.fixture
def kernel(environment: Path) -> None:
    """What runs a notebook's cells, in the environment."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"),
            *("--constraint", ROOT / "constraints.txt", "nbclient", "ipykernel"),
        ],
        check=True,
    )


def assert_learnt(printed: str) -> None:
    share, params, header, *rows = printed.splitlines()[-6:]
    assert float(share) > 0.9
    assert re.fullmatch(r"\{'optim.lr': 0\.\d+, 'model.width': (8|32)\}", params)
    assert header.split() == ["prediction"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]


def test_a_script_of_15_lines_trains_with_2_workers_sweeps_and_opens_the_best_model(project: Project):
    assert len(SCRIPT.splitlines()) <= 15
    (project.folder / "script.py").write_text(SCRIPT)
    assert_learnt(project.run("python", "script.py"))
    trained, swept = sorted(project.folder.glob("runs/shoal/*/config.yaml"))
    assert "num_workers: 2" in trained.read_text()
    assert swept.parent.name.startswith("sweep-")


def test_a_notebooks_cells_do_the_same_in_a_kernel(project: Project, kernel: None):
    (project.folder / "cells.json").write_text(
        json.dumps([SCRIPT, "result", "best.model.predict(frame.head(2))"])
    )
    found = json.loads(project.run("python", "-c", NOTEBOOK).splitlines()[-1])
    assert_learnt(found["printed"])
    result, predicted = found["shown"]
    assert "data:image/png" in result["text/html"]
    assert "prediction" in predicted["text/html"]


def test_the_command_trains_without_a_clone(project: Project):
    printed = project.run("shoal", "train", "digits.yaml", "scale.num_workers=0", "train.epochs=5")
    result = json.loads(Path(printed.splitlines()[-1].removeprefix("result: ")).read_text())
    assert result["metrics"]["test/accuracy"] > 0.9
    assert "look at it: shoal ui" in printed
    assert "digits" in project.run("shoal", "runs")


def test_what_init_writes_trains(project: Project):
    project.run("shoal", "init")
    project.run("shoal", "train", "config.yaml", "train.epochs=2", "scale.num_workers=0")


def test_import_and_help_are_quick(project: Project):
    code = (
        "import time; since = time.process_time(); import shoal, sys; took = time.process_time() - since; "
        "print(shoal.__file__, took, [name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    tries = [project.run("python", "-c", code).split() for _ in range(3)]
    assert all("site-packages" in path and loaded == "[]" for path, _, loaded in tries)
    assert min(float(seconds) for _, seconds, _ in tries) < 0.1
    timed = "import os, subprocess; subprocess.run(['shoal', '--help']); print(sum(os.times()[2:4]))"
    assert min(float(project.run("python", "-c", timed).splitlines()[-1]) for _ in range(3)) < 0.5
