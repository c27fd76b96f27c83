"""Whether MLflow takes what a run sends: a run with a metric and a file goes in, comes out, and is deleted again."""

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from shoal.config.secrets import mask, reveal
from shoal.errors import ConfigError, value_and_remedy
from shoal.registry.client import connect
from shoal.registry.preflight import authorization, check_tracking_uri
from shoal.tracking.background import first_cause
from shoal.tracking.entities import experiment_id

FILE, TEXT, METRIC = "doctor.txt", "written by shoal doctor", "doctor"
VERSION_S = 3.0


@dataclass(frozen=True)
class StoreProbe:
    """What became of it.

    Attributes:
        uri: without secrets.
        error: in words; None where all of it worked.
        remedy: where the error has one of its own.
        version: of MLflow on a server; None where there is no server, or it does not say.
    """

    uri: str
    error: str | None = None
    remedy: str | None = None
    seconds_per_call: float = 0.0
    version: str | None = None


def probe_store(uri: str, experiment: str, artifact_location: str | None) -> StoreProbe:
    """Record a run in the experiment that a training would use, which is made where it is not there.

    Args:
        uri: as `client.without_secrets` returns it.
    """
    try:
        check_tracking_uri(uri)
        client = connect(uri)
        calls, seconds = _record(client, experiment_id(client, experiment, artifact_location))
    except ConfigError as error:
        value, remedy = value_and_remedy(error)
        return StoreProbe(uri, mask(value), remedy)
    except Exception as error:
        return StoreProbe(uri, mask(first_cause(error)))
    return StoreProbe(uri, seconds_per_call=seconds / calls, version=_server_version(uri))


def _record(client: Any, experiment: str) -> tuple[int, float]:
    """Write, read and delete a run; return the number of calls, and the seconds that they took."""
    run_id = client.create_run(experiment, run_name="doctor", tags={"shoal.job": "doctor"}).info.run_id
    try:
        began_s = time.monotonic()
        client.log_metric(run_id, METRIC, 1.0)
        has_metric = client.get_run(run_id).data.metrics == {METRIC: 1.0}
        seconds = time.monotonic() - began_s
        client.log_text(run_id, TEXT, FILE)
        with tempfile.TemporaryDirectory() as folder:
            has_file = Path(client.download_artifacts(run_id, FILE, folder)).read_text() == TEXT
    finally:
        client.set_terminated(run_id)
        client.delete_run(run_id)
    if not (has_metric and has_file):
        raise ConfigError(
            f"the {'file' if has_metric else 'metric'} that was written is not the one that is read: look into the "
            "log of the server"
        )
    return 2, seconds


def _server_version(uri: str) -> str | None:
    if not uri.startswith("http"):
        return None
    with contextlib.suppress(OSError, ValueError):
        request = Request(reveal(uri).rstrip("/") + "/version", headers=authorization())
        with urlopen(request, timeout=VERSION_S) as answer:
            return str(answer.read(100).decode()).strip()
    return None
