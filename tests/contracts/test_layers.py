"""Which module may import which, read from the sources: a package imports only from packages before it.

A new package needs a place in `PACKAGES`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "platform"

# Bottom up: a package imports only itself and the packages before it.
PACKAGES = [
    "errors",
    "version",
    "processes",
    "devices",
    "config",
    "storage",
    "distributed",
    "plots",
    "data",
    "models",
    "tasks",
    "training",
    "inference",
    "export",
    "explain",
    "registry",
    "tracking",
    "compression",
    "runs",
    "tune",
    "serving",
    "ops",
    "cluster",
    "workflows",
    "terminal",
    "api",
    "command",
    "__main__",
]
# Named in MLmodel files of models that were saved before `shoal.inference` existed.
ALIASES = {"shoal.predict"}


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
            assert node.level == 0, f"{path}: imports must be absolute"
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


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_module_is_in_a_package_of_the_order():
    placed = {name for name in MODULES if package_of(name) in PACKAGES} | ALIASES | {"shoal"}
    assert sorted(set(MODULES) - placed) == [], "add their packages to PACKAGES"


@pytest.mark.parametrize("name", [name for name in MODULES if package_of(name) in PACKAGES])
def test_a_module_imports_only_from_packages_before_its_own(name):
    allowed = PACKAGES[: PACKAGES.index(package_of(name)) + 1]
    own = {found for found in imports(MODULES[name]) if found.startswith("shoal.")}
    assert {found for found in own if package_of(found) not in allowed} == set()


def test_imports_have_no_circle():
    graph = {name: {found for found in imports(path) if found in MODULES} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def underscored(path: Path) -> Iterator[str]:
    """The names with a leading underscore that a file imports from another module of shoal."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "shoal":
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_"))


@pytest.mark.parametrize("name", sorted(set(MODULES) - ALIASES))
def test_a_module_imports_no_private_name_of_another_module(name):
    assert list(underscored(MODULES[name])) == []


def test_ray_is_imported_in_cluster_alone_and_mlflow_in_tracking_and_registry():
    assert {package_of(name) for name in importers("ray")} == {"cluster"}
    assert {package_of(name) for name in importers("mlflow")} == {"registry", "tracking"}


def test_the_library_imports_no_job():
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} | {"jobs"}
    for name, path in MODULES.items():
        assert not {found.split(".")[0] for found in imports(path)} & jobs, name


def test_importing_shoal_loads_neither_torch_nor_ray_nor_mlflow_nor_pandas():
    assert loaded("import shoal") & {"torch", "ray", "mlflow", "pandas", "pydantic"} == set()


def test_importing_shoal_takes_less_than_a_tenth_of_a_second():
    code = "import time; since = time.process_time(); import shoal; dir(shoal); print(time.process_time() - since)"
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True)
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 0.1


def test_what_runs_before_a_cluster_or_inside_a_worker_loads_neither_ray_nor_mlflow():
    names = ("config", "resolve", "validate", "worker")
    found = loaded(
        "; ".join(f"import shoal.runs.{name}" for name in names)
        + "; import shoal.training.loop, shoal.inference.predictor"
    )
    assert found & {"ray", "mlflow"} == set()


def test_the_loop_and_the_models_need_torch_numpy_and_pydantic_alone():
    """So that `benchmarks/mfu.py` runs on a bare GPU machine."""
    installed = set(packages_distributions())
    needed = loaded("import torch, numpy; from pydantic import BaseModel, Field") | {"shoal"}
    found = loaded(
        "import sys; sys.path.insert(0, '..'); import benchmarks.mfu, shoal.tasks.registry, shoal.training.accumulation"
    )
    assert (found & installed) - needed == set()


def test_what_starts_without_training_is_light():
    """The watchdog is one more process per run; errors and config decide how fast a typo is reported."""
    heavy = {"torch", "ray", "mlflow", "pandas", "matplotlib"}
    terminal = ", ".join(f"shoal.terminal.{name}" for name in ("errors", "progress", "tables", "reports"))
    found = loaded(f"import shoal.errors, shoal.config.schema, shoal.storage.run_folder, {terminal}")
    assert found & heavy == set()
    assert loaded("import shoal.tracking.watchdog") & (heavy | {"pyarrow", "pydantic"}) == set()


@pytest.mark.parametrize("name", MODULES)
def test_importing_a_module_has_no_effect(name):
    """A module has definitions, docstrings and imports; it calls nothing for its effect."""
    effects = [
        ast.unparse(node)
        for node in ast.parse(MODULES[name].read_text()).body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and not ast.unparse(node).startswith("Loader.add_implicit_resolver")  # on the module's own class
    ]
    assert effects == []


def test_only_devices_names_a_kind_of_device_of_torch():
    named = {name for name, path in MODULES.items() if "torch.cuda" in path.read_text()}
    assert named == {"shoal.devices"}
