"""The model in MLflow: logged once, registered once, compared with the champion."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from shoal.registry.champion import COMPARISON, Candidate, contest, find_champion
from shoal.registry.client import patience_for
from shoal.storage.folder import Folder
from shoal.storage.records import Verified
from shoal.storage.run_folder import MODEL, MODEL_CARD, RunFolder

READY = "READY"


def publish_model(
    client: Any, folder: RunFolder, experiment_id: str, run_id: str, runs_code: bool = False
) -> None:
    """Log the saved model to its run and, once verified, register it; a second call changes nothing.

    Args:
        runs_code: whether the run's own code may be called: its process publishes it.
    """
    identity = folder.identity()
    with tempfile.TemporaryDirectory() as scratch:
        local = folder.get_folder(MODEL, Path(scratch) / "model")
        model_id = _log(client, local, experiment_id, run_id)
        if identity.registered_model_name and identity.verified:
            version = _register(client, identity.registered_model_name, model_id, run_id, identity.verified)
            folder.update_tracked(model_version=int(version.version))
            candidate = Candidate(version.name, str(version.version), identity.verified, local, runs_code)
            # A version without rows is of an earlier Shoal, which has compared it, unless the store is another one.
            is_comparable = "held_out" in version.tags or find_champion(client, version.name) is None
            if is_comparable and COMPARISON not in version.tags:
                text = contest(client, candidate)
                client.set_model_version_tag(version.name, version.version, COMPARISON, text[:5000])
                folder.update_tracked(comparison=text)


def _log(client: Any, local: Path, experiment_id: str, run_id: str) -> str:
    """Log the model, from where an earlier call was when it failed; return its id."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    found = sorted(found, key=lambda model: str(model.status) != READY)
    logged = found[0] if found else client.create_logged_model(experiment_id, "model", run_id)
    for other in found[1:]:  # created by a call whose answer was lost
        client.delete_logged_model(other.model_id)
    if str(logged.status) != READY:
        outputs = client.get_run(run_id).outputs if found else None
        if not outputs or all(output.model_id != logged.model_id for output in outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        card = Model.load(str(local))
        card.run_id, card.model_id, card.artifact_path = run_id, logged.model_id, logged.artifact_location
        # On a disk this is the run's own model, which a kill in the middle must leave whole.
        Folder(str(local)).write(MODEL_CARD, card.to_yaml().encode())
        largest = max(path.stat().st_size for path in local.rglob("*"))
        with patience_for(largest):
            client.log_model_artifacts(logged.model_id, str(local))
        client.finalize_logged_model(logged.model_id, READY)
    return str(logged.model_id)


def _register(client: Any, name: str, model_id: str, run_id: str, verified: Verified) -> Any:
    """Return the run's version of a registered model, created if there is none yet."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    if versions:
        return versions[0]
    tags = {"metric": verified.metric, "value": repr(verified.value), "data": verified.data}
    tags |= {"held_out": verified.held_out} if verified.held_out else {}
    return client.create_model_version(name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id)
