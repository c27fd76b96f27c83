"""Which module may import which, read from the sources: imports go strictly downward, wherever they stand.

A new module is given its place in `LAYERS`; modules of one layer do not import each other.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "platform"

LAYERS = [
    # What everything may use.
    ["shoal", "errors"],
    [
        "config",
        "storage",
        "importing",
        "metrics",
        "collective",
        "shards",
        "precision",
        "ema",
        "compilation",
        "data.order",
        "data.tokenizer",
        "models.mlp",
        "models.transformer",
        "models.convolution",
        "models.flops",
        "sweep.trials",
    ],
    [
        "settings",
        "sharding",
        "onednn",
        "data.images",
        "data.augment",
        "models.resnet",
        "models.inception",
        "models.huggingface",
    ],
    # The parts: data, models, what is learnt and how.
    [
        "runfolder",
        "space",
        "sweep",
        "sweep.config",
        "sweep.html",
        "sweep.importance",
        "data",
        "data.config",
        "data.sources",
        "data.transform",
        "data.shard",
        "models.config",
        "models.gpt",
        "models.bert",
        "models.initial",
    ],
    ["parametrization", "language", "data.text", "data.prepare", "sweep.engine"],
    ["models", "tasks", "optim", "memory", "profiling", "performance"],
    ["data.opening", "generate"],
    # What they leave behind.
    [
        "models.budget",
        "checkpoint",
        "evaluate",
        "track",
        "track.config",
        "track.journal",
        "compress",
        "sweep.search",
    ],
    ["microbatch"],
    # The loop, and the trained model.
    ["train", "predict", "track.system", "track.pictures"],
    ["explain", "export", "coordinates", "sweep.pictures", "sweep.width", "sweep.scaling", "sweep.transfer"],
    ["sweep.report"],
    # Tracking, towards MLflow.
    ["track.registry", "track.verify"],
    ["track.mirror"],
    ["track.sweep", "track.resolve"],
    ["track.tracker", "track.guardian"],
    # Running on a cluster.
    ["cluster", "cluster.config"],
    ["cluster.record"],
    [
        "cluster.session",
        "cluster.claim",
        "cluster.worker",
        "cluster.stream",
        "cluster.ingest",
        "cluster.assess",
        "cluster.deliver",
        "cluster.sweep_config",
        "cluster.schedulers",
    ],
    ["cluster.plan", "cluster.facts", "cluster.attempt"],
    ["cluster.deal", "cluster.sweep_plan", "cluster.coordinate_check"],
    ["cluster.workers"],
    ["cluster.trial", "cluster.pantry", "cluster.sweep_facts"],
    ["cluster.pool", "cluster.past", "cluster.progress"],
    ["cluster.exchange"],
    ["cluster.fit", "cluster.tune", "cluster.serve"],
    ["cluster.transfer"],
    # What only jobs use.
    ["console"],
    ["cluster.probe", "cluster.budget"],
    ["cluster.forecast"],
]
RANKS = {
    "shoal" if name == "shoal" else f"shoal.{name}": rank
    for rank, names in enumerate(LAYERS)
    for name in names
}

RAY_MODULES = {
    f"shoal.cluster.{name}"
    for name in ("session", "ingest", "stream", "deal", "workers", "trial", "pool", "schedulers", "serve")
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((SOURCE / "shoal").rglob("*.py"))}


def imports(path: Path, at_top: bool = False) -> Iterator[str]:
    """The modules a file imports, those inside functions too unless `at_top`."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def importers(package: str) -> set[str]:
    """The modules of shoal that import a package anywhere."""
    return {
        name
        for name, path in MODULES.items()
        if any(found.split(".")[0] == package for found in imports(path))
    }


def loaded(statement: str) -> set[str]:
    """The top-level packages that are loaded in a fresh process after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_every_module_has_its_place_among_the_layers():
    assert sorted(set(MODULES) - set(RANKS)) == [], "give these a layer in LAYERS"


@pytest.mark.parametrize("name", [name for name in MODULES if name in RANKS])
def test_a_module_imports_only_from_layers_below_its_own(name):
    own = {found for found in imports(MODULES[name]) if found.split(".")[0] == "shoal"}
    assert {found for found in own if found not in RANKS or RANKS[found] >= RANKS[name]} == set()


def test_ray_is_imported_in_the_cluster_folder_alone_and_there_by_few():
    assert importers("ray") - RAY_MODULES == set()
    assert importers("ray") & RAY_MODULES


def test_mlflow_is_imported_in_the_track_folder_alone():
    found = importers("mlflow")
    assert {name for name in found if not name.startswith("shoal.track.")} == set()
    assert found


def test_the_library_imports_no_job():
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} | {"jobs"}
    for name, path in MODULES.items():
        assert not {found.split(".")[0] for found in imports(path)} & jobs, name


def test_importing_shoal_loads_neither_torch_nor_ray_nor_mlflow_nor_pandas():
    assert loaded("import shoal") & {"torch", "ray", "mlflow", "pandas", "pydantic"} == set()


def test_what_runs_before_a_cluster_or_inside_a_worker_loads_neither_ray_nor_mlflow():
    names = ("config", "claim", "plan", "worker")
    found = loaded(
        "; ".join(f"import shoal.cluster.{name}" for name in names) + "; import shoal.train, shoal.predict"
    )
    assert found & {"ray", "mlflow"} == set()


def test_the_loop_and_the_models_need_torch_numpy_and_pydantic_alone():
    """So that `benchmarks/mfu.py` runs on a bare GPU machine."""
    installed = set(packages_distributions())
    needed = loaded("import torch, numpy; from pydantic import BaseModel, Field") | {"shoal"}
    found = loaded(
        "import sys; sys.path.insert(0, '..'); import benchmarks.mfu, shoal.tasks, shoal.microbatch"
    )
    assert (found & installed) - needed == set()


def test_what_starts_without_training_is_light():
    """The guardian outlives the driver, and errors and config are what a typo costs."""
    heavy = {"torch", "ray", "mlflow", "pandas", "matplotlib"}
    assert loaded("import shoal.errors, shoal.config, shoal.console, shoal.runfolder") & heavy == set()
    assert loaded("import shoal.track.guardian") & (heavy | {"pyarrow", "pydantic"}) == set()


@pytest.mark.parametrize("name", MODULES)
def test_importing_a_module_has_no_effect(name):
    """At module level there are definitions, docstrings and imports; nothing is called for its effect."""
    effects = [
        ast.unparse(node)
        for node in ast.parse(MODULES[name].read_text()).body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and not ast.unparse(node).startswith("Loader.add_implicit_resolver")  # of the module's own class
    ]
    assert effects == []
