"""The layout of the repository, and the size of its files and functions.

A file above `MOST_LINES` or a function above `MOST_LINES_OF_A_FUNCTION` needs a reason: a sentence that begins with
"Long because", in the docstring of the module, in a comment before its first statement, or inside the function.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOAL = ROOT / "platform" / "shoal"
SOURCES = sorted([*SHOAL.rglob("*.py"), *(ROOT / "jobs").glob("*.py")])

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
REASON = "Long because"


def long_parts(text: str) -> list[str]:
    """Return what is too long in a source text and gives no reason: 'file' or names of functions, with their lines."""
    lines = text.splitlines()
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [
        f"{node.name}: {length}"
        for node in functions
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
        and REASON not in "\n".join(lines[node.lineno - 1 : node.end_lineno])
    ]
    first = min((node.lineno for node in tree.body[1:]), default=len(lines))
    if len(lines) > MOST_LINES and REASON not in "\n".join(lines[:first]):
        found.append(f"file: {len(lines)}")
    return found


def test_the_source_root_is_no_package_and_holds_shoal_alone():
    assert not (ROOT / "platform" / "__init__.py").exists()
    held = {path.name for path in (ROOT / "platform").iterdir() if not path.name.startswith((".", "__"))}
    assert {name for name in held if not name.endswith(".egg-info")} == {"shoal"}


def test_importing_platform_at_the_repository_root_is_the_standard_library():
    code = "import platform; print(platform.__file__); platform.machine()"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).name == "platform.py"
    assert ROOT not in Path(run.stdout.strip()).parents


def test_no_module_is_called_utils():
    assert [path for path in SHOAL.rglob("*.py") if "util" in path.stem] == []


def test_every_folder_is_a_package_and_every_module_has_a_docstring():
    for path in SHOAL.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path
        assert path.read_text().startswith('"""'), path


def test_a_job_is_at_most_a_page_and_has_a_main():
    jobs = [path for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("_")]
    assert jobs
    for path in jobs:
        text = path.read_text()
        assert len(text.splitlines()) <= 120, path
        assert "def main(" in text
        assert "run(main)" in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_long_file_or_function_gives_its_reason(path):
    assert long_parts(path.read_text()) == []


def test_the_check_of_lengths_finds_long_parts_without_a_reason_alone():
    body = "\n".join(f"    x = {number}" for number in range(MOST_LINES_OF_A_FUNCTION))
    long = f"def f():\n{body}\n"
    assert long_parts(long) == ["f: 61"]
    assert long_parts(long.replace("x = 3\n", "x = 3  # Long because it is a table.\n")) == []
    file = '"""What it is for."""\n' + "x = 1\n" * MOST_LINES
    assert long_parts(file) == ["file: 401"]
    assert long_parts(file.replace("for.", "for. Long because it is a table.")) == []


@pytest.mark.parametrize(
    "package",
    [path.parent for path in SHOAL.rglob("__init__.py") if path.parent != SHOAL],
    ids=lambda path: path.name,
)
def test_a_package_names_each_of_its_modules(package):
    text = (package / "__init__.py").read_text()
    inner = {path.stem for path in package.glob("*.py")} - {"__init__"}
    inner |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert {name for name in inner if not re.search(rf"`{name}(/|`)", text)} == set()
