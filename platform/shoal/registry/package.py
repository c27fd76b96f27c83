"""A model saved in MLflow's format: a pyfunc model without pickle."""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.config.import_path import is_path
from shoal.config.objects import FOLDER as OBJECTS
from shoal.config.objects import is_reference
from shoal.data.preprocessing import Transform
from shoal.data.sources.base import Block
from shoal.inference import golden
from shoal.inference.artifact import write_manifest
from shoal.inference.artifact_code import LIBRARIES
from shoal.inference.description import DESCRIPTION, Description
from shoal.inference.onnx_module import OnnxModule
from shoal.inference.predictor import Predictor
from shoal.inference.rows import as_rows
from shoal.models.huggingface_config import SCHEME
from shoal.tasks.objective import ObjectiveConfig
from shoal.version import VERSION

REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "PyYAML", "psutil")
RUNTIME: tuple[str, ...] = ("onnx", "onnxruntime")  # of 8-bit integers
EXAMPLE_ROWS = 5
PACKAGE = '''"""Shoal as it was when the model was saved; its modules are in `shoal.zip`."""

import os

__version__ = "{version}"
__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "shoal.zip", "shoal")]
'''


def save_model(
    path: Path, data: Path, example: Block, model_name: str, objects: Mapping[str, bytes] | None = None
) -> None:
    """Write the pyfunc model: `data` (weights, description), Shoal's own code, the user's builder, loss and metrics.

    `data` receives golden rows with their answers, and the model a manifest of its files.

    Args:
        example: a few raw rows, held out if possible, from which the signature, the input example and the golden rows
            are made.
        objects: files of objects that were passed from Python, by name.
    """
    from mlflow import pyfunc
    from mlflow.models import infer_signature

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # which its import resets
    predictor, objective = Predictor.load_own(data), Description.load(data / DESCRIPTION).objective
    golden.save(data, predictor.golden_rows(example), predictor.golden_answers)
    rows = as_rows({name: column[:EXAMPLE_ROWS] for name, column in example.items()}, predictor.transform)
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        finds_boxes = bool(predictor.transform.categories)
        answers = None if finds_boxes else predictor.predict(rows)
        signature = infer_signature(rows, answers, predictor.params or None)
        if finds_boxes:
            signature.outputs = _boxes_schema()
        _loosen(signature, predictor.transform)
        pyfunc.save_model(
            path,
            loader_module="shoal.inference.predictor",
            data_path=str(data),
            code_paths=[
                str(_zip_shoal(Path(scratch))),
                *_code_paths(_named_code(model_name, objective, predictor.transform.collate)),
                *_write_objects(Path(scratch) / OBJECTS, objects or {}),
            ],
            signature=signature,
            input_example=rows,
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}"
                for name in _requirements(
                    model_name,
                    objective,
                    takes_recordings=predictor.transform.audio is not None,
                    runs_onnx=isinstance(predictor.model, OnnxModule),
                )
            ],
        )
    for cache in path.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)
    write_manifest(path)


def _boxes_schema() -> Any:
    """Return the columns of a detection, which of images without boxes alone cannot be inferred."""
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    return Schema(
        [
            ColSpec(Array(DataType.string), "prediction"),
            ColSpec(Array(Array(DataType.double)), "boxes"),
            ColSpec(Array(DataType.double), "scores"),
        ]
    )


def _loosen(signature: Any, transform: Transform) -> None:
    """Allow missing texts, which the transform accepts, and numbers of any width."""
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    if signature.inputs.is_tensor_spec() or transform.tokenizer:
        return
    columns = {column.name: column for column in transform.columns}
    specs = []
    for spec in signature.inputs.inputs:
        column = columns[spec.name]
        if column.kind == "category" or column.kind in ("hashed", "words"):
            specs.append(ColSpec(DataType.string, spec.name, required=False))
        elif column.reading is not None:
            specs.append(ColSpec(AnyType(), spec.name, required=False))  # a number, or text as in training
        elif column.kind == "number" and column.dtype.startswith("float"):
            specs.append(ColSpec(DataType.double, spec.name))
        else:
            specs.append(ColSpec(_widest(spec.type), spec.name, required=spec.required))
    signature.inputs = Schema(specs)


def _widest(kind: Any) -> Any:
    """Return the type for arrays whose numbers come as JSON, as those of an example do: MLflow narrows none."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    if not isinstance(kind, Array):
        return kind
    widest = {DataType.float: DataType.double, DataType.integer: DataType.long}
    return Array(_widest(kind.dtype) if isinstance(kind.dtype, Array) else widest.get(kind.dtype, kind.dtype))


def _requirements(
    model_name: str, objective: ObjectiveConfig, takes_recordings: bool = False, runs_onnx: bool = False
) -> tuple[str, ...]:
    builds = ("transformers",) if model_name.startswith(SCHEME) else ()
    needed = RUNTIME if runs_onnx else builds
    decodes = ("scipy", "soundfile") if takes_recordings else ()
    return (*REQUIREMENTS, *needed, *decodes, *(("torchmetrics",) if objective.metrics else ()))


def _zip_shoal(folder: Path) -> Path:
    """Write the package `shoal` with its modules in one archive: a server takes each file in a call of its own."""
    source, package = Path(__file__).resolve().parents[1], folder / "shoal"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE.format(version=VERSION))
    with zipfile.ZipFile(package / "shoal.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                member = zipfile.ZipInfo(f"shoal/{path.relative_to(source).as_posix()}")  # without a date
                archive.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return package


def _named_code(model_name: str, objective: ObjectiveConfig, collate: str | None) -> list[str]:
    """Return what a config names as code: the builder, the loss, metrics, the collate function."""
    named = [model_name, objective.loss or "", *objective.metrics, collate or ""]
    return [
        path for path in named if is_path(path) and not is_reference(path) and not path.startswith(SCHEME)
    ]


def _code_paths(named: list[str]) -> list[str]:
    """The tops of the modules of a user's functions, in readable files: so that the model loads where they are not."""
    tops = dict.fromkeys(path.partition(":")[0].partition(".")[0] for path in named)
    paths = []
    for top in tops:
        module = sys.modules.get(top) or importlib.import_module(top)
        file = getattr(module, "__file__", None)
        if file and top not in LIBRARIES:
            paths.append(str(Path(file).parent if file.endswith("__init__.py") else file))
    return paths


def _write_objects(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Write the objects that were passed from Python, if there are any."""
    for name, data in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return [str(folder)] if files else []


@contextlib.contextmanager
def _quiet() -> Any:
    """Hide MLflow's progress bars and hints from the user."""
    import warnings

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
