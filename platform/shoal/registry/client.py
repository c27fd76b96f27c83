"""The MLflow client of all requests: it gives up within seconds."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from shoal.config.secrets import hide, reveal
from shoal.registry.sqlite_store import create_store

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
TIMEOUT_S = 10
STORED_PER_S = 5 << 20  # bytes that the slowest server stores


def without_secrets(tracking_uri: str) -> str:
    """Return a tracking URI as it is shown and stored.

    The user and password of a server move to the environment, from which MLflow takes them; secrets of another address
    are masked.
    """
    hide(os.environ.get("MLFLOW_TRACKING_URI", ""))  # it may be this one in full
    given = reveal(tracking_uri)
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not (parts.username and parts.password):
        return hide(given)
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return hide(given.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1))


@contextlib.contextmanager
def patience_for(nbytes: int) -> Iterator[None]:
    """Give a server the time that it takes to store so many bytes, before it answers."""
    usual = os.environ.get(TIMEOUT, str(TIMEOUT_S))
    os.environ[TIMEOUT] = str(int(usual) + nbytes // STORED_PER_S)
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


def connect(tracking_uri: str) -> Any:
    """Return an MlflowClient that gives up within seconds, its store initialized."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # who syncs tries again
    os.environ.setdefault(TIMEOUT, str(TIMEOUT_S))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    tracking_uri = reveal(without_secrets(tracking_uri))
    if not tracking_uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 1  # its ten tries at opening a database take 100 s
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    create_store(tracking_uri)
    # MLflow looks models up at its global address, whatever the address of the client.
    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    for name in ("mlflow", "alembic"):  # the first client resets them
        logging.getLogger(name).setLevel(logging.ERROR)
    client.search_experiments(max_results=1)
    return client
