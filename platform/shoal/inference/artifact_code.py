"""The code that a saved model's description names: run only where its user says so, and only the model's own.

A description is data that may come from anywhere: a name in it, such as `os:system`, must not choose what is called.
"""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from shoal.config import objects
from shoal.config.import_path import find, is_path, was_named
from shoal.data.sources.open import is_function
from shoal.errors import ModelError
from shoal.models.huggingface_config import SCHEME
from shoal.models.registry import REGISTRY, find_builder

CODE = "code"  # the folder of a saved MLflow model with the code that was packaged with it
LIBRARIES = ("torch", "torchmetrics")  # whose losses and metrics a model names without having their code
TRUST_VARIABLE = "SHOAL_TRUST_CODE"  # for `mlflow.pyfunc.load_model`, which passes no arguments on


def builder_of_artifact(description: Path, name: str, trust_code: bool) -> Callable[..., Any]:
    """Return the builder that a description names: one of Shoal's, or with `trust_code` one of the model's own code.

    Args:
        description: the file, `MODEL/data/FOLDER/description.json`, that holds the name.
        name: `model.name`.

    Raises:
        ModelError: the builder is code and `trust_code` is not set, or it is no code of this model.
    """
    if name in REGISTRY or name.startswith(SCHEME):
        return find_builder(name)
    if not is_path(name):
        raise ModelError(
            f"'{description}' names the model '{name}', which Shoal does not know: train it again"
        )
    if is_object_of_artifact(description, name, trust_code):
        return find_builder(name)
    if not trust_code:
        raise ModelError(
            f"'{description}' names the model's own code, '{name}', which is not run unasked: look at it, then set "
            f"trust_code=true ({TRUST_VARIABLE}=1 for mlflow.pyfunc.load_model)"
        )
    return _import_from(description.parents[2] / CODE, name, description)


def code_of_artifact(description: Path, trust_code: bool, path: str, key: str) -> Callable[..., Any]:
    """Return what a description names as a loss or a metric: of torch or torchmetrics, or of the model's own code.

    Raises:
        ModelError: `trust_code` is not set, or it is no code of this model.
    """
    if is_object_of_artifact(description, path, trust_code):
        kept: Callable[..., Any] = find(path, key)
        return kept
    if not trust_code:
        raise ModelError(
            f"'{description}' names {key}='{path}', code that is not run unasked: look at it, then set "
            f"trust_code=true ({TRUST_VARIABLE}=1 for mlflow.pyfunc.load_model)"
        )
    if path.partition(":")[0].partition(".")[0] in LIBRARIES:
        found: Callable[..., Any] = find(path, key)
        return found
    return _import_from(description.parents[2] / CODE, path, description)


def is_object_of_artifact(description: Path, name: str, trust_code: bool) -> bool:
    """Whether a name is of an object that this process may use: its own, by its content, or a trusted model's."""
    if trust_code and objects.is_reference(name):
        objects.receive_files(description.parents[2] / CODE / objects.FOLDER)
    return objects.is_kept(name)


def check_source_of_artifact(source: str, trust_code: bool) -> None:
    """Refuse to call the function that a description names as the model's data.

    Raises:
        ModelError: `trust_code` is not set, or the function lies outside the working directory.
    """
    if not is_function(source) or objects.is_kept(source) or was_named(source):
        return
    if objects.is_reference(source):
        raise ModelError(
            f"the model was trained on data.source='{source}', rows that were passed from Python and that this process "
            "does not have: name the rows to measure it on with data.source=..., or from Python "
            "shoal.evaluate(model, source=rows)"
        )
    if not trust_code:
        raise ModelError(
            f"the model was trained on data.source='{source}', a function that its description.json names, which is "
            "not called unasked: name other data with data.source=..., or set trust_code=true"
        )
    if not _lies_in(Path.cwd(), source.partition(":")[0]):
        raise ModelError(
            f"the model's description.json names data.source='{source}', whose module is not in the working directory "
            f"'{Path.cwd()}': run where it is, or name the data with data.source=..."
        )


def _lies_in(folder: Path, module: str) -> bool:
    """Whether the top of a dotted module is a file or package of a folder; nothing is imported."""
    top = folder / module.partition(".")[0]
    return (top.is_dir() or top.with_suffix(".py").is_file()) and not _is_imported_from_elsewhere(top)


def _is_imported_from_elsewhere(top: Path) -> bool:
    loaded = sys.modules.get(top.name)
    return loaded is not None and not _is_below(getattr(loaded, "__file__", None), top.parent)


def _same_as_loaded(top: Path) -> Path | None:
    """Return the folder that a file or package is imported from already, if the text there is the same."""
    file = getattr(sys.modules.get(top.name), "__file__", None)
    if file is None or not (top.is_dir() or top.with_suffix(".py").is_file()):
        return None
    theirs, ours = (top, Path(file).parent) if top.is_dir() else (top.with_suffix(".py"), Path(file))
    pairs = [(one, ours / one.relative_to(theirs)) for one in theirs.rglob("*.py")] or [(theirs, ours)]
    if not all(other.is_file() and one.read_bytes() == other.read_bytes() for one, other in pairs):
        return None
    return ours.parent


def _is_below(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(folder.resolve())


def _import_from(code: Path, path: str, description: Path) -> Callable[..., Any]:
    """Import `package.module:name` from a model's own code; a module that is imported already must have its text."""
    module_name, _, name = path.partition(":")
    refusal = (
        f"'{description}' names '{path}', which is no class or function of the model's own code in '{code}': train it "
        "again"
    )
    loaded = _same_as_loaded(code / module_name.partition(".")[0])
    if loaded is not None:
        code = loaded
    elif not _lies_in(code, module_name):
        raise ModelError(refusal)
    elif str(code) not in sys.path:
        sys.path.insert(0, str(code))
    importlib.invalidate_caches()
    try:
        with _from_source():
            module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"the model's own code '{module_name}' in '{code}' does not import ({type(error).__name__}: {error}): "
            "install what it needs"
        ) from error
    found: Callable[..., Any] | None = getattr(module, name, None)
    # A loss or metric that is an object belongs to the module that made it, whatever its class.
    file = getattr(module, "__file__", None) if isinstance(found, nn.Module) else _file_of(found)
    if not callable(found) or not _is_below(file, code):
        raise ModelError(refusal)
    return found


@contextlib.contextmanager
def _from_source() -> Iterator[None]:
    """Import from the texts alone: no manifest states what is in `__pycache__`, which Python would run instead."""
    before = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = os.devnull, True  # a file: nothing lies below it
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = before


def _file_of(found: Any) -> str | None:
    try:
        return inspect.getsourcefile(found)
    except TypeError:  # built in
        return None


def is_trusted_by_environment() -> bool:
    """Whether the user of `mlflow.pyfunc.load_model` lets a model's own code run."""
    return os.environ.get(TRUST_VARIABLE) == "1"
