"""The pages are true: links, tree, keys, targets and messages that they name, and the example of an own model."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.test_layers import PACKAGES
from docs import generate
from shoal.compression.config import CompressConfig
from shoal.config.schema import fields
from shoal.storage.records import Result, TrainResult
from shoal.workflows.coordinate_check import CoordinateConfig
from shoal.workflows.evaluate import EvaluateConfig
from shoal.workflows.explain import ExplainConfig
from shoal.workflows.export import ExportConfig
from shoal.workflows.predict import PredictConfig
from shoal.workflows.promote import PromoteConfig
from shoal.workflows.serve import ServeConfig
from shoal.workflows.transfer import TransferConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
TREE = (DOCS / "contributing" / "tree.md").read_text()
OWN_MODEL = (DOCS / "guides" / "own-model.md").read_text()
KEYS = {
    key
    for kind in (
        TransferConfig,
        CoordinateConfig,
        EvaluateConfig,
        PredictConfig,
        ExportConfig,
        ExplainConfig,
        CompressConfig,
        PromoteConfig,
        ServeConfig,
    )
    for key, _ in fields(kind)
}
KEYS |= {key.rpartition(".")[0] for key in KEYS if key.count(".") > 1}  # sections inside sections
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
EXTENSIONS = {"py", "yaml", "md", "txt", "toml", "safetensors", "csv", "parquet", "onnx", "pt2"}


def blocks(language: str, page: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def tree() -> dict[str, str]:
    """Return {path: meaning} of the annotated tree; folders end with a slash."""
    (text,) = blocks("", TREE)
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
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert not any("--" in slug for slug in slugs), f"{page.name}: the site links to such a title differently"
    return slugs


def test_every_folder_and_every_file_at_the_top_is_in_the_tree():
    paths = set(tree())
    folders = {f"{Path(path).parent.as_posix()}/" for path in tracked() if "/" in path}
    wanted = {path for path in tracked() if "/" not in path} | folders
    missing = {path for path in wanted if path not in paths and not path.startswith("tests/")}
    assert not missing, f"not in docs/contributing/tree.md: {sorted(missing)}"


def test_the_tree_names_the_packages_in_the_order_of_the_layers():
    packages = [
        path.split("/")[2] for path in tree() if path.startswith("platform/shoal/") and path.count("/") == 3
    ]
    assert packages == [name for name in PACKAGES if (ROOT / "platform" / "shoal" / name).is_dir()]


def test_everything_in_the_tree_exists():
    wrong = [
        path for path in tree() if (ROOT / path).is_dir() != path.endswith("/") or not (ROOT / path).exists()
    ]
    assert not wrong, f"in docs/contributing/tree.md, but not there: {wrong}"


def test_every_file_in_the_tree_has_a_meaning():
    assert not [path for path, meaning in tree().items() if not meaning and not path.endswith("/")]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in generate.PAGES], ids=lambda page: page.name
)
def test_config_keys_exist(page):
    text = re.sub(r"^```(?:python|yaml).*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    dotted = re.findall(rf"(?<![\w/.-])((?:{'|'.join(SECTIONS)})\.\w+)", text)
    set_in_commands = [
        key
        for command in re.findall(
            r"(?:jobs/|shoal )(?:train|check|plan|tune|transfer|coordinate.check|evaluate|export|compress|explain"
            r"|promote)\b"
            r"(.*(?:\\\n.*)*)",
            text,
        )
        for key in re.findall(r"(?<=[\s'])([a-z_]+(?:\.[a-z_]+)*)=", command)
    ]
    named = {key for key in [*dotted, *set_in_commands] if key.rpartition(".")[2] not in EXTENSIONS}
    assert not {key for key in named - {"key"} if ".".join(key.split(".")[:2]) not in KEYS}
    assert page.name != "README.md" or len(named) > 3


def test_make_targets_exist():
    defined = set(re.findall(r"^([a-z]+(?:-[a-z]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"\bmake\s([a-z]+(?:-[a-z]+)*)\b", _code(page.read_text()))
    }
    assert {"train", "test", "ui", "check", "bench", "setup"} <= named
    assert named <= defined


def test_scripts_exist():
    for page in PAGES:
        for script in re.findall(r"\b(?:jobs|benchmarks)/\w[\w/]*\.(?:py|yaml)", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_the_generated_pages_are_current():
    for path, page in generate.PAGES.items():
        assert path.read_text() == page(), (
            f"{path.name} is out of date: run .venv/bin/python docs/generate.py"
        )


def test_every_field_of_a_result_has_a_meaning():
    for kind in (Result, *generate.RESULTS.values()):
        table = generate.field_table(kind, set())
        assert not re.findall(r"^\| `\w+` \| [^|]+ \| +\|$", table, re.MULTILINE)


def test_every_page_is_in_the_menu_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[1:])


def test_the_messages_of_the_troubleshooting_page_exist():
    """What stands between the dots of a message is a part of some text in the sources."""
    known = "\n".join(_texts())
    rows = re.findall(r"^\| `([^`]+)` ", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    unknown = [
        (message, part)
        for message in rows
        for part in re.split(r"\(?'?\.\.\.'?\)?", message)
        if part.strip() and part not in known
    ]
    assert not unknown


@pytest.mark.long
def test_the_example_of_an_own_model_trains(tmp_path):
    source = next(block for block in blocks("python", OWN_MODEL) if "def orders" in block)
    commands = (
        next(block for block in blocks("sh", OWN_MODEL) if "import shop" in block)
        .replace("\\\n", " ")
        .splitlines()
    )
    (tmp_path / "shop.py").write_text(source)
    for command, more in zip(commands, ("", " scale.num_workers=0 train.epochs=1", " --check"), strict=True):
        line = re.sub("^python", sys.executable, command.replace("shoal ", "python -m shoal ")) + more
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/shoal/*/result.json")
    assert set(json.loads(result.read_text())) == set(TrainResult.model_fields)


def _texts() -> Iterator[str]:
    """Yield each text of the sources; what is filled in is left out."""
    for path in (ROOT / "platform" / "shoal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _code(text: str) -> str:
    """Return what stands in blocks or between backticks; prose may make sense by itself."""
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))
