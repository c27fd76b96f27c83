"""Where a model is: a run folder, `runs:/ID` or `models:/NAME@ALIAS` becomes a local folder to load from."""

import logging
import tempfile
from pathlib import Path

from shoal.errors import ModelError
from shoal.inference.description import WEIGHTS
from shoal.inference.onnx_module import FILE
from shoal.inference.predictor import weights_folder
from shoal.registry.client import connect
from shoal.storage.records import Identity
from shoal.storage.run_folder import MODEL, MODEL_CARD, RunFolder

logger = logging.getLogger(__name__)


def resolve_model(uri: str, tracking_uri: str, scratch: str) -> Path:
    """Return the local folder of the model's weights and description, for `Predictor.load`.

    Args:
        uri: a run folder (local or s3://), `runs:/ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        scratch: a folder to download to.

    Raises:
        ModelError: there is no such model, or its run has not finished.
    """
    if uri.startswith(("runs:/", "models:/")):
        return weights_folder(_download(uri, tracking_uri, scratch))
    folder = RunFolder(uri)
    if not folder.exists(Identity.file):
        raise ModelError(
            f"model '{uri}' is not known: give a run folder (storage_path/experiment_name/run_name), runs:/ID, "
            "or models:/NAME@ALIAS"
        )
    if not folder.exists(f"{MODEL}/{MODEL_CARD}"):
        raise ModelError(
            f"run folder '{uri}' holds no model yet: let the run finish first (the same command resumes)"
        )
    found = weights_folder(folder.get_folder(MODEL, Path(tempfile.mkdtemp(dir=scratch)) / MODEL))
    if not any((found / name).is_file() for name in (WEIGHTS, FILE)):
        raise ModelError(
            f"run folder '{uri}' holds a model without {WEIGHTS}: train it again with if_exists=new"
        )
    return found


def pinned_uri(uri: str, tracking_uri: str) -> str:
    """Return `models:/NAME/VERSION` for `models:/NAME@ALIAS`, and any other URI as it is.

    Raises:
        ModelError: there is no such alias.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not (uri.startswith("models:/") and at):
        return uri
    _check_store(uri, tracking_uri)
    try:
        version = connect(tracking_uri).get_model_version_by_alias(name, alias).version
    except Exception as error:
        raise _unknown(uri, tracking_uri, error) from error
    return f"models:/{name}/{version}"


def _check_store(uri: str, tracking_uri: str) -> None:
    path = tracking_uri.removeprefix("sqlite:///")
    if path != tracking_uri and not Path(path).exists():
        raise ModelError(
            f"model '{uri}' is not known: there is no MLflow store at {tracking_uri}: set track.tracking_uri"
        )


def _unknown(uri: str, tracking_uri: str, error: Exception) -> ModelError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        f"model '{uri}' is not known to MLflow at {tracking_uri} ({reason}): look it up with `make ui`, or set "
        "track.tracking_uri"
    )


def _download(uri: str, tracking_uri: str, scratch: str) -> Path:
    _check_store(uri, tracking_uri)
    try:
        client = connect(tracking_uri)
        import mlflow

        if uri.startswith("runs:/"):
            run_id = uri.removeprefix("runs:/").partition("/")[0]
            run = client.get_run(run_id)
            logged = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
            if not logged:
                raise ModelError(
                    f"model '{uri}': that run logged no model: let it finish, or give another run"
                )
            uri = f"models:/{logged[0].model_id}"
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=tempfile.mkdtemp(dir=scratch)))
    except ModelError:
        raise
    except Exception as error:
        raise _unknown(uri, tracking_uri, error) from error
