"""The README is true: its tree, its links, the keys and targets it names, and the example it gives."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.test_layers import PACKAGES
from shoal.config.schema import fields
from shoal.workflows.coordinate_check import CoordinateConfig
from shoal.workflows.evaluate import EvaluateConfig
from shoal.workflows.transfer import TransferConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = {key for kind in (TransferConfig, CoordinateConfig, EvaluateConfig) for key, _ in fields(kind)}
KEYS |= {key.rpartition(".")[0] for key in KEYS if key.count(".") > 1}  # sections inside sections
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
EXTENSIONS = {"py", "yaml", "md", "txt", "toml", "safetensors", "csv", "parquet"}


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def tree() -> dict[str, str]:
    """Return {path: meaning} of the annotated tree; folders end with a slash."""
    text = next(block for block in blocks("") if block.startswith("Makefile "))
    meanings, parents = {}, [""]
    for line in text.splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+)(?:  +(\S.*))?", line)
        assert match, f"a line of the tree does not read: {line!r}"
        depth, name = len(match[1]) // 2, match[2]
        path = parents[depth] + name
        meanings[path] = match[3] or ""
        del parents[depth + 1 :]
        parents.append(path)
    return meanings


def tracked() -> list[str]:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no git checkout")
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def documented_result() -> set[str]:
    section = README.partition("## result.json")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_folder_and_every_file_at_the_top_is_in_the_tree():
    paths = set(tree())
    folders = {f"{Path(path).parent.as_posix()}/" for path in tracked() if "/" in path}
    wanted = {path for path in tracked() if "/" not in path} | folders
    missing = {path for path in wanted if path not in paths and not path.startswith("tests/")}
    assert not missing, f"not in the README's tree: {sorted(missing)}"


def test_the_tree_names_the_packages_in_the_order_of_the_layers():
    packages = [
        path.split("/")[2] for path in tree() if path.startswith("platform/shoal/") and path.count("/") == 3
    ]
    assert packages == [name for name in PACKAGES if (ROOT / "platform" / "shoal" / name).is_dir()]


def test_everything_in_the_tree_exists():
    wrong = [
        path for path in tree() if (ROOT / path).is_dir() != path.endswith("/") or not (ROOT / path).exists()
    ]
    assert not wrong, f"in the README's tree, but not there: {wrong}"


def test_every_file_in_the_tree_has_a_meaning():
    assert not [path for path, meaning in tree().items() if not meaning and not path.endswith("/")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_exist(page):
    text = re.sub(r"^```python.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    dotted = re.findall(rf"(?<![\w/.-])((?:{'|'.join(SECTIONS)})\.\w+)", text)
    set_in_commands = [
        key
        for command in re.findall(
            r"jobs/(?:train|tune|transfer|coordinate_check|evaluate)\.py(.*(?:\\\n.*)*)", text
        )
        for key in re.findall(r"(?<=[\s'])([a-z_]+(?:\.[a-z_]+)*)=", command)
    ]
    named = {key for key in [*dotted, *set_in_commands] if key.rpartition(".")[2] not in EXTENSIONS}
    assert not {key for key in named if ".".join(key.split(".")[:2]) not in KEYS}
    assert page.name != "README.md" or len(named) > 10


def test_make_targets_exist():
    defined = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for page in PAGES for target in re.findall(r"\bmake\s([a-z]+)\b", _code(page.read_text()))
    }
    assert {"train", "test", "ui", "check", "bench", "setup"} <= named
    assert named <= defined


def test_scripts_exist():
    for page in PAGES:
        for script in re.findall(r"\b(?:jobs|benchmarks)/\w[\w/]*\.(?:py|yaml)", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_the_example_of_an_own_model_trains(tmp_path):
    source = next(block for block in blocks("python") if "def orders" in block)
    commands = (
        next(block for block in blocks("sh") if "import shop" in block).replace("\\\n", " ").splitlines()
    )
    (tmp_path / "shop.py").write_text(source)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    for command, more in zip(commands, ("", " scale.num_workers=0 train.epochs=1", " --check"), strict=True):
        line = command.replace(".venv/bin/python", sys.executable) + more
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/shoal/*/result.json")
    assert set(json.loads(result.read_text())) == documented_result()


def _code(text: str) -> str:
    """Return what stands in blocks or between backticks; prose may make sense by itself."""
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))
