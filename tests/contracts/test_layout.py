"""The shape of the repository that other things lean on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOAL = ROOT / "platform" / "shoal"


def test_the_source_root_is_no_package_and_holds_shoal_alone():
    assert not (ROOT / "platform" / "__init__.py").exists()
    held = {path.name for path in (ROOT / "platform").iterdir() if not path.name.startswith((".", "__"))}
    assert {name for name in held if not name.endswith(".egg-info")} == {"shoal"}


def test_the_standard_librarys_platform_is_imported_from_the_root_of_the_repository():
    code = "import platform; print(platform.__file__); platform.machine()"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).name == "platform.py"
    assert ROOT not in Path(run.stdout.strip()).parents


def test_no_module_is_called_utils():
    assert [path for path in SHOAL.rglob("*.py") if "util" in path.stem] == []


def test_every_folder_of_the_package_is_a_package_and_every_module_says_what_it_is_for():
    for path in SHOAL.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path
        assert path.read_text().startswith('"""'), path


def test_no_job_holds_more_than_a_page_and_each_has_a_main():
    jobs = [path for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("_")]
    assert jobs
    for path in jobs:
        text = path.read_text()
        assert len(text.splitlines()) <= 120, path
        assert "def main(" in text
        assert "run(main)" in text
