"""Names that another library keeps to itself are used in two modules alone, which list them with their fallbacks."""

import ast
from collections.abc import Iterator

import pytest

from contracts.test_layers import MODULES

ADAPTERS = {"shoal.distributed.torch_private", "shoal.cluster.ray_private"}
# Documented in spite of the underscore.
PUBLIC = {"os._exit", "sys._current_frames"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.Module) -> set[str]:
    """Names with an underscore that a module itself defines, as functions, classes, variables or attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            names.add(node.attr)
    return names


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


# A method of a subclass reads what a base class in another module sets.
INHERITED = set().union(*(defined(ast.parse(path.read_text())) for path in MODULES.values()))


def foreign(tree: ast.Module) -> Iterator[str]:
    """Private names of other libraries that a module imports, reads as an attribute, or names in getattr."""
    own = defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names if node.module != "__future__"]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            known = own | INHERITED if is_own(node) else own
            names = [] if node.attr in known else [ast.unparse(node)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            given = node.args[1] if len(node.args) > 1 else None
            names = [str(given.value)] if isinstance(given, ast.Constant) and given.value not in own else []
        else:
            continue
        for name in names:
            if name not in PUBLIC and not name.startswith("shoal.") and any(map(is_private, name.split("."))):
                yield name


@pytest.mark.parametrize("name", sorted(set(MODULES) - ADAPTERS))
def test_a_module_uses_no_private_name_of_another_library(name):
    found = sorted(foreign(ast.parse(MODULES[name].read_text())))
    assert found == [], f"put it behind a function with a fallback in one of {sorted(ADAPTERS)}"


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_an_adapter_lists_every_private_name_it_uses(name):
    tree = ast.parse(MODULES[name].read_text())
    listed = (ast.get_docstring(tree) or "").replace("{pre,post}", "pre").replace("*Error", "")
    for used in foreign(tree):
        own = next(part for part in reversed(used.split(".")) if is_private(part))
        assert own.replace("post", "pre") in listed, used


@pytest.mark.parametrize(
    "code",
    [
        "import torch._dynamo",
        "from torch._C import x",
        "from ray import _private",
        "actor._actor_id",
        "getattr(actor, '_actor_id', None)",
        "def f():\n    import ray._private.worker",
    ],
)
def test_the_scan_sees_every_way_of_naming_one(code):
    assert list(foreign(ast.parse(code)))


def test_the_scan_leaves_a_modules_own_names_alone():
    code = "import os\nclass A:\n    def _b(self):\n        self._c = other._c\n        os._exit(A._b(self))"
    assert list(foreign(ast.parse(code))) == []
