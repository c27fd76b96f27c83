"""The model as MLflow holds it: a pyfunc model without pickle, its registration, the champion.

A model is saved into the run folder first and published from there, now or by a later sync.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from shoal.data.sources import Block
from shoal.data.transform import Transform
from shoal.importing import is_path
from shoal.metrics import is_better
from shoal.models.huggingface import SCHEME
from shoal.predict import Predictor, as_rows
from shoal.runfolder import MODEL, TRACKED, RunFolder

CHAMPION = "champion"
REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "PyYAML", "psutil")
EXAMPLE_ROWS = 5


def save_model(path: Path, data: Path, example: Block, model_name: str) -> None:
    """Write the pyfunc model: `data` (weights, description), Shoal's own code, the user's builder.

    Args:
        example: a few raw rows, from which the signature and the input example are made.
    """
    from mlflow import pyfunc
    from mlflow.models import infer_signature

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # which its import sets anew
    predictor = Predictor.load(data)
    rows = as_rows({name: column[:EXAMPLE_ROWS] for name, column in example.items()}, predictor.transform)
    with _quiet():
        signature = infer_signature(rows, predictor.predict(rows), predictor.params or None)
        _loosen(signature, predictor.transform)
        pyfunc.save_model(
            path,
            loader_module="shoal.predict",
            data_path=str(data),
            code_paths=_code_paths(model_name),
            signature=signature,
            input_example=rows,
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}" for name in _requirements(model_name)
            ],
        )
    for cache in path.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


def publish_model(client: Any, folder: RunFolder, experiment_id: str, run_id: str) -> None:
    """Log the saved model to its run and, once verified, register it; a second call changes nothing."""
    identity = folder.identity()
    with tempfile.TemporaryDirectory() as scratch:
        local = folder.get_folder(MODEL, Path(scratch) / "model")
        model_id = _log(client, local, experiment_id, run_id)
    name = identity.get("registered_model_name")
    if name and identity.get("verified"):
        version = _register(client, name, model_id, run_id, identity)
        folder.update_json(TRACKED, model_version=version)


def _log(client: Any, local: Path, experiment_id: str, run_id: str) -> str:
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    logged = found[0] if found else client.create_logged_model(experiment_id, "model", run_id)
    if not found:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if str(logged.status) != "READY":
        card = Model.load(str(local))
        card.run_id, card.model_id, card.artifact_path = run_id, logged.model_id, logged.artifact_location
        card.save(str(local / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(local))
        client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _register(client: Any, name: str, model_id: str, run_id: str, identity: dict[str, Any]) -> int:
    """Make a version of a registered model, and the champion if it beats the present one on the same metric."""
    from mlflow.exceptions import MlflowException

    metric, value = identity["verified"]["metric"], identity["verified"]["value"]
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    if versions:
        return int(versions[0].version)
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        champion = None
    tags = {"metric": metric, "value": repr(value), "data": identity["verified"]["data"]}
    made = client.create_model_version(name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id)
    is_rival = champion is not None and champion.tags.get("metric") == metric
    if champion is None or (is_rival and is_better(metric, value, float(champion.tags["value"]))):
        client.set_registered_model_alias(name, CHAMPION, made.version)
    return int(made.version)


def _loosen(signature: Any, transform: Transform) -> None:
    """Texts may be missing, since the transform takes that; numbers are as wide as numbers go."""
    from mlflow.types import ColSpec, DataType, Schema

    if signature.inputs.is_tensor_spec() or transform.tokenizer:
        return
    columns = {column.name: column for column in transform.columns}
    specs = []
    for spec in signature.inputs.inputs:
        column = columns[spec.name]
        if column.kind == "category":
            specs.append(ColSpec(DataType.string, spec.name, required=False))
        elif column.kind == "number" and column.dtype.startswith("float"):
            specs.append(ColSpec(DataType.double, spec.name))
        else:
            specs.append(spec)
    signature.inputs = Schema(specs)


def _requirements(model_name: str) -> tuple[str, ...]:
    return (*REQUIREMENTS, "transformers") if model_name.startswith(SCHEME) else REQUIREMENTS


def _code_paths(model_name: str) -> list[str]:
    """Shoal itself and the top of the user's builder's module, so that the model loads where neither is."""
    paths = [str(Path(__file__).resolve().parents[1])]
    if is_path(model_name) and not model_name.startswith(SCHEME):
        top = model_name.partition(":")[0].partition(".")[0]
        module = sys.modules.get(top) or importlib.import_module(top)
        file = getattr(module, "__file__", None)
        if file:
            paths.append(str(Path(file).parent if file.endswith("__init__.py") else file))
    return paths


@contextlib.contextmanager
def _quiet() -> Any:
    """MLflow's progress bars and hints are of no use to the person who trains."""
    import warnings

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
