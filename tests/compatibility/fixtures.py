"""What the compatibility tests share: the recorded values, packed places, and how a run is compared with a record.

A fixture is a place (runs/, mlflow.db, mlartifacts/) as an earlier version left it, packed as NAME.tar.xz. No path of
the machine that made it is in there: where a place's own path stood is `PLACE`, and unpacking puts the new one in.

Only what stays is used here: the jobs' command line, MLflow's own API, and of a run folder config.yaml, journal/,
result.json, checkpoints/step-* and model/.
"""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from platform import platform
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
RECORD = HERE / "recorded.json"
PLACE = "@PLACE@"
LEFT_OUT = ("__pycache__", ".mlflow.lock")

# Metrics that depend on the config alone; the others are of speed, memory and load.
COMPARED = ("train/", "val/", "test/", "best/")

# On another CPU or torch, sums are rounded otherwise: so many first steps are compared, within this.
FIRST_STEPS, RELATIVE = 20, 1e-3

PREDICT = """
import json, mlflow, numpy
from sklearn.datasets import load_digits

mlflow.set_tracking_uri("{uri}")
model = mlflow.pyfunc.load_model("models:/digits@champion")
frame = model.predict(load_digits(as_frame=True).data.head(12))
loader = model.metadata.flavors["python_function"]["loader_module"]
print(json.dumps({{
    "prediction": numpy.asarray(frame["prediction"]).tolist(),
    "probabilities": numpy.stack(frame["probabilities"]).tolist(),
    "loader_module": loader,
}}))
"""

Points = dict[str, dict[int, float]]


def recorded() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text()))


def machine() -> dict[str, str]:
    """What decides the bits of a result. A CPU's name does not: clouds call several generations "AMD EPYC"."""
    lines = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        if ":" in line
    )
    cpu = f"{lines.get('model name')}, family {lines.get('cpu family')}, model {lines.get('model')}"
    capability = str(torch.backends.cpu.get_cpu_capability())
    return {"cpu": cpu, "capability": capability, "torch": torch.__version__}


def is_same_machine() -> bool:
    """Whether results must equal the recorded ones to the bit."""
    return bool(recorded()["machine"] == machine())


def write_corpus(folder: Path) -> None:
    """Write a small text, the same everywhere: 40 files of some 700 bytes."""
    words = (
        "def",
        "return",
        "if",
        "else",
        "for",
        "in",
        "while",
        "x",
        "y",
        "total",
        "(",
        ")",
        ":",
        "=",
        "+",
        "1",
    )
    state = 1
    folder.mkdir()
    for number in range(40):
        text = ""
        for place in range(150):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            text += words[(state >> 33) % len(words)] + ("\n" if place % 8 == 7 else " ")
        (folder / f"{number:02d}.txt").write_text(text)


# -- what a run left behind --------------------------------------------------------------------------------------------


def journals(folder: Path) -> set[Path]:
    """Return the journals in a run folder; of a sweep, those of its trials as well."""
    return set(folder.rglob("journal/*.jsonl"))


def points_of(folder: Path, without: set[Path] = frozenset()) -> Points:  # type: ignore[assignment]
    """Return {metric: {step: value}} of a run's journals; of a step that was trained twice, the later value."""
    points: Points = {}
    for path in sorted(set(folder.glob("journal/*.jsonl")) - without):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn when its writer was killed
            for key, value in entry["metrics"].items():
                if key.startswith(COMPARED):
                    points.setdefault(key, {})[entry["step"]] = value
    return points


def last_checkpoint(folder: Path) -> int:
    """Return the step of a run's newest checkpoint."""
    return max(int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*"))


def run_folder(place: Path) -> Path:
    """Return the one run folder of a place."""
    (config,) = place.glob("runs/*/*/config.yaml")
    return config.parent


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What of a training's result.json depends on the config alone."""
    kept = (
        "status",
        "steps",
        "samples_seen",
        "metrics",
        "best",
        "test_loss",
        "reached_target",
        "is_verified",
    )
    model = {key: result["model"][key] for key in ("parameters", "bytes", "flops_per_sample")}
    return {key: result[key] for key in (*kept, "sample")} | {"model": model}


def rows(result: dict[str, Any]) -> dict[str, Any]:
    """What of a sweep's result.json depends on the config alone, by trial."""
    kept = ("params", "status", "metric", "steps", "curve", "reason")
    return {row["name"]: {key: row[key] for key in kept} for row in result["rows"]}


def only_run(tracking_uri: str) -> str:
    """Return the id of the one run in an MLflow store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri, tracking_uri)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(everywhere)
    return str(run.info.run_id)


def predict(place: Path, first: str = "", **env: str) -> dict[str, Any]:
    """Return what the registered model predicts for some rows, in a fresh process.

    Args:
        first: what the process does before it loads the model.
    """
    code = f"{first}\n{PREDICT.format(uri=f'sqlite:///{place}/mlflow.db')}"
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=kept | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def side_by_side(work: Callable[[str], Any], names: Sequence[str]) -> Iterator[dict[str, "Future[Any]"]]:
    """Do something for each name, two at a time and in order: most of a small job is imports, on one core.

    What no test has waited for when the last one has ended is not begun any more.
    """
    pool = ThreadPoolExecutor(2)
    try:
        yield {name: pool.submit(work, name) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)


# -- comparing -------------------------------------------------------------------------------------------------------


def assert_as_recorded(run: dict[str, Any], folder: Path, result: dict[str, Any], since: int = 0) -> None:
    """A training left the recorded values, of which this machine trained those after step `since`.

    To the bit on a machine like the recorded one. Elsewhere its first FIRST_STEPS steps are compared, within RELATIVE;
    unless there is dropout, whose masks torch draws otherwise on another maker's CPU.
    """
    found, expected = points_of(folder), as_points(run["points"])
    assert {key: set(steps) for key, steps in found.items()} == {
        key: set(steps) for key, steps in expected.items()
    }
    assert result["steps"] == run["summary"]["steps"]
    if is_same_machine():
        assert found == expected
        assert summary(result) == run["summary"]
    elif not any("dropout" in argument for argument in run["arguments"]):
        for key, steps in expected.items():
            for step, value in steps.items():
                if step <= since + FIRST_STEPS:
                    assert found[key][step] == pytest.approx(value, rel=RELATIVE), (key, step)


def with_best_metric(sweep: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a sweep as of one that is begun now: a trial's metric is its best value, not its last."""
    best = {name: {"metric": min(value for _, value in row["curve"])} for name, row in sweep["rows"].items()}
    return sweep | {"rows": {name: row | best[name] for name, row in sweep["rows"].items()}}


def assert_rows_as_recorded(sweep: dict[str, Any], result: dict[str, Any]) -> None:
    """A sweep ended with the recorded rows and the recorded best; elsewhere with the same points and first values."""
    found, expected = rows(result), sweep["rows"]
    if is_same_machine():
        assert found == expected
        assert {key: result["best"][key] for key in sweep["best"]} == sweep["best"]
        assert result["trials"] == sweep["trials"]
        return
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name]["params"] == pytest.approx(row["params"], rel=1e-9)
        assert found[name]["curve"][0] == pytest.approx(row["curve"][0], rel=RELATIVE)


def as_points(recorded: dict[str, dict[str, float]]) -> Points:
    """Turn the record's steps, which are texts in JSON, into numbers."""
    return {key: {int(step): value for step, value in steps.items()} for key, steps in recorded.items()}


# -- packing -----------------------------------------------------------------------------------------------------------


def pack(place: Path, name: str) -> None:
    """Pack a place as the fixture `name`, without any path or name of this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "place"
        shutil.copytree(place, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        _rewrite(copy, lambda text: _without_machine(text, place))
        _check_nothing_is_left(copy, place)
        with tarfile.open(HERE / f"{name}.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(copy.rglob("*")):
                if path.is_file():
                    archive.add(path, path.relative_to(copy), filter=_without_owner)


def unpack(name: str, place: Path) -> None:
    """Unpack a fixture into an empty folder, which becomes its place."""
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(place, filter="data")
    _rewrite(place, lambda text: text.replace(PLACE, str(place)))


def _own_names(place: Path) -> Iterator[tuple[str, str]]:
    """Yield patterns of what is this machine's own, and what stands there instead; what is longer goes first."""
    host = re.escape(socket.gethostname())
    yield re.escape(str(place)), PLACE
    yield re.escape(str(HERE.parents[1])), "/shoal"
    yield re.escape(str(Path(sys.prefix))), "/venv"
    yield re.escape(platform()), "Linux"
    yield rf"\b{host} pid:\[\d+\]", "elsewhere pid:[1]"
    yield rf'(?<="){host}(?=\\?")', "elsewhere"
    yield rf"(?<=node: ){host}\b", "elsewhere"


def _without_machine(text: str, place: Path) -> str:
    for pattern, instead in _own_names(place):
        text = re.sub(pattern, instead, text)
    return text


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _rewrite(folder: Path, change: Callable[[str], str]) -> None:
    """Change the text of all files and databases in a folder."""
    for path in folder.rglob("*"):
        if path.suffix == ".db":
            _rewrite_database(path, change)
        elif path.is_file():
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue
            changed = change(text)
            if changed != text:
                # A checkpoint's files are listed with their hashes.
                assert "checkpoints" not in path.parts, path
                path.write_bytes(changed.encode())


def _rewrite_database(path: Path, change: Callable[[str], str]) -> None:
    with sqlite3.connect(path) as database:
        database.create_function(
            "changed", 1, lambda value: change(value) if isinstance(value, str) else value
        )
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = changed("{column}") '
                    f'WHERE typeof("{column}") = \'text\' AND "{column}" <> changed("{column}")'
                )
    database.execute("VACUUM")  # what was there before is in freed pages
    database.close()


def _check_nothing_is_left(folder: Path, place: Path) -> None:
    """Raise if a packed file names this machine's paths, host or user, or a commit."""
    words = [
        str(place),
        str(place.parent),
        str(HERE.parents[1]),
        sys.prefix,
        platform(),
        os.path.expanduser("~/"),
    ]
    words += [
        f"{socket.gethostname()} pid",
        f'"{socket.gethostname()}"',
        "git.commit",
        "pyenv",
        socket.gethostbyname(socket.gethostname()),
    ]
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found = [word for word in words if word.encode() in data]
            assert not found, f"{path} holds {found}"
