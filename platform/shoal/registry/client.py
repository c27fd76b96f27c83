"""The MLflow client of all requests: it gives up within seconds."""

import logging
import os
from typing import Any


def connect(tracking_uri: str) -> Any:
    """Return an MlflowClient that gives up within seconds, its store initialised."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # MLflow looks models up at its global address, whatever the address of the client.
    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    for name in ("mlflow", "alembic"):  # the first client resets them
        logging.getLogger(name).setLevel(logging.ERROR)
    client.search_experiments(max_results=1)
    return client
