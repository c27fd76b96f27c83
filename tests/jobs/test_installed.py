"""Shoal as another project has it: installed by pip into a fresh environment, in an empty folder, without a clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import JOB_TIMEOUT_S, RAY_ENV, ROOT

pytestmark = pytest.mark.long


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


def test_the_command_trains_without_a_clone(project: Project):
    printed = project.run("shoal", "train", "digits.yaml", "scale.num_workers=0", "train.epochs=5")
    result = json.loads(Path(printed.splitlines()[-1].removeprefix("result: ")).read_text())
    assert result["metrics"]["test/accuracy"] > 0.9
    assert "look at it: shoal ui" in printed
    assert "digits" in project.run("shoal", "runs")


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
