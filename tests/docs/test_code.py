"""The code of the pages runs: porting guides, the tutorial, the README's tour, and the notebooks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from running import ROOT, Place

DOCS = ROOT / "docs"
PORTED = {  # what each must reach on rows that it has not seen
    "pytorch": ("val/accuracy", 0.9),
    "lightning": ("val/r2", 0.3),
    "huggingface": ("val/accuracy", 0.9),
    "ray_train": ("val/accuracy", 0.85),
    "ludwig": ("val/accuracy", 0.9),
}
NOTEBOOKS = sorted(path.name for path in (DOCS / "notebooks").glob("*.ipynb"))
GUARD = 'if __name__ == "__main__":'


def run_as_main(place: Place, *cells: str) -> str:
    """Run pieces of code one after the other in the `__main__` of a fresh process, as a notebook does."""
    (place.path / "cells.json").write_text(json.dumps(cells))
    runner = (
        "import json\n"
        "for _number, _cell in enumerate(json.load(open('cells.json'))):\n"
        "    exec(compile(_cell, f'<cell {_number}>', 'exec'), globals())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", runner],
        cwd=place.path,
        env={**place.env, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("name", PORTED)
def test_a_ported_script_learns(place: Place, name):
    text = (DOCS / "porting" / f"{name}.py").read_text()
    before, guard, main = text.partition(GUARD)
    assert guard
    out = run_as_main(place, before, "CONFIG |= {'scale.num_workers': 0}\n", f"if True:{main}")
    (path,) = place.path.glob("runs/*/*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["is_verified"]) == ("FINISHED", True), out
    metric, least = PORTED[name]
    assert result["metrics"][metric] > least, result["metrics"]


def test_every_ported_script_is_on_its_page():
    scripts = {path.stem for path in (DOCS / "porting").glob("*.py")}
    assert scripts == PORTED.keys()
    for name in scripts:
        page = DOCS / "porting" / f"{name.replace('_', '-')}.md"
        assert f'--8<-- "docs/porting/{name}.py"' in page.read_text()


@pytest.mark.long
def test_the_tutorial_runs_from_top_to_bottom(place: Place):
    out = run_as_main(place, *python_of(DOCS / "tutorial.md"))
    assert float(re.search(r"test/accuracy +([\d.]+)", out)[1]) > 0.8
    assert "FINISHED" in out


@pytest.mark.long
def test_the_tutorial_of_speech_trains(place: Place):
    """For one epoch, which learns nothing, and shows that all recordings are there and read."""
    if not Path("/usr/share/asterisk/sounds/en_US_f_Allison").is_dir():
        pytest.skip("the recordings are not here: apt-get install asterisk-core-sounds-en-wav")
    (code,) = python_of(DOCS / "guides" / "speech-tutorial.md")
    assert '"train.epochs": 50' in code
    out = run_as_main(place, code.replace('"train.epochs": 50', '"train.epochs": 1'))
    assert "FINISHED" in out
    (listed,) = place.path.glob("prompts.tsv")
    assert len(listed.read_text().splitlines()) > 500


def test_the_tour_of_the_readme_runs(place: Place):
    out = run_as_main(place, *python_of(ROOT / "README.md"))
    assert float(re.search(r"test/accuracy +([\d.]+)", out)[1]) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(place: Place, name):
    cells = json.loads((DOCS / "notebooks" / name).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    assert all(not cell.get("outputs") for cell in cells), "clear the outputs before a commit"
    run_as_main(place, *code)
