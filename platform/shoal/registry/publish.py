"""The model in MLflow: logged once, registered once, champion if it is better."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from shoal.storage.records import Verified
from shoal.storage.run_folder import MODEL, RunFolder
from shoal.tasks.metrics import is_better

CHAMPION = "champion"


def publish_model(client: Any, folder: RunFolder, experiment_id: str, run_id: str) -> None:
    """Log the saved model to its run and, once verified, register it; a second call changes nothing."""
    identity = folder.identity()
    with tempfile.TemporaryDirectory() as scratch:
        local = folder.get_folder(MODEL, Path(scratch) / "model")
        model_id = _log(client, local, experiment_id, run_id)
    if identity.registered_model_name and identity.verified:
        version = _register(client, identity.registered_model_name, model_id, run_id, identity.verified)
        folder.update_tracked(model_version=version)


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


def _register(client: Any, name: str, model_id: str, run_id: str, verified: Verified) -> int:
    """Create a version of a registered model, the champion if it is better than the present one on its metric."""
    from mlflow.exceptions import MlflowException

    metric, value = verified.metric, verified.value
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    if versions:
        return int(versions[0].version)
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        champion = None
    tags = {"metric": metric, "value": repr(value), "data": verified.data}
    created = client.create_model_version(name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id)
    is_rival = champion is not None and champion.tags.get("metric") == metric
    if champion is None or (is_rival and is_better(metric, value, float(champion.tags["value"]))):
        client.set_registered_model_alias(name, CHAMPION, created.version)
    return int(created.version)
