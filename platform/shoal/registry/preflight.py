"""Whether an MLflow store takes the records of a run: found out within seconds, before anything is started.

What can never work is refused. A server that does not answer may do so later: that is a warning. Without the import of
MLflow, which takes seconds, unless a server refuses.
"""

import base64
import json
import logging
import os
import re
import time
from http.client import HTTPException
from importlib.metadata import entry_points
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from shoal.config.secrets import reveal
from shoal.errors import ConfigError, nearest
from shoal.registry.client import connect
from shoal.registry.sqlite_store import check_store

PROBE_S = 3.0  # a server that takes longer does not answer
TRIES, RETRY_S = 5, 0.3  # of a server that answers with an error, or refuses the connection
DATABASES = {"postgresql": "'psycopg[binary]'", "mysql": "pymysql", "mssql": "pyodbc"}
OTHERS = ("databricks", "databricks-uc", "uc")  # need no host
REFUSED = (401, 403)
NO_MLFLOW = (404, 405, 501)
ASKED = "/api/2.0/mlflow/experiments/search?max_results=1"

logger = logging.getLogger(__name__)


def check_tracking_uri(uri: str) -> None:
    """Refuse a tracking URI at which no run can be recorded; warn of a server that does not answer.

    Args:
        uri: as `client.without_secrets` returns it.

    Raises:
        ConfigError: with the rule that it breaks, and a remedy.
    """
    scheme, has_scheme, _ = uri.partition("://")
    scheme = scheme.partition("+")[0] if has_scheme else uri.partition(":")[0]
    if scheme in OTHERS or scheme in {point.name for point in entry_points(group="mlflow.tracking_store")}:
        return
    if not has_scheme or scheme == "file":
        _check_path(uri)
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in DATABASES:
        _check_driver(uri, scheme)
    else:
        known = ("http", "https", "sqlite", *DATABASES)
        raise _refusal(
            uri,
            f"'{scheme}' is no scheme of MLflow{nearest(scheme, known)}",
            f"write one of {', '.join(known)}",
        )


def _refusal(uri: str, rule: str, remedy: str) -> ConfigError:
    return ConfigError(f"track.tracking_uri='{uri}': {rule}: {remedy}")


def _check_path(uri: str) -> None:
    if re.fullmatch(r"(\[[\da-fA-F:]+\]|[\w.-]+):\d+(/.*)?", uri):
        raise _refusal(uri, "the address of a server begins with its scheme", f"write http://{uri}")
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        database = Path(uri.removeprefix("file://")) / "mlflow.db"
        raise _refusal(uri, "MLflow no longer keeps runs in plain folders", f"write sqlite:///{database}")


def _check_sqlite(uri: str) -> None:
    path = Path(uri.removeprefix("sqlite:///"))
    folder = path.parent
    while not folder.exists():  # MLflow makes folders
        folder = folder.parent
    if path.is_dir():
        raise _refusal(uri, "it names a folder", f"name a file in it, e.g. {uri}/mlflow.db")
    blocked = next(
        (place for place in (folder, path) if place.exists() and not os.access(place, os.W_OK)), None
    )
    if blocked or not folder.is_dir():
        raise _refusal(
            uri, f"'{blocked or folder}' cannot be written by this user", "name a file in another folder"
        )
    check_store(uri)


def _check_driver(uri: str, scheme: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(reveal(uri)).get_dialect().import_dbapi()
    except (SQLAlchemyError, ValueError) as error:
        raise _refusal(
            uri, f"it is no address of a database ({error})", f"write {scheme}://USER:PASSWORD@HOST/NAME"
        ) from None
    except ImportError as error:
        raise _refusal(
            uri, f"its driver is not installed ({error})", f"pip install {DATABASES[scheme]}"
        ) from None


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        has_host = False
    if not has_host:
        raise _refusal(uri, "it names no host, or a port that is no number", "write http://HOST:PORT")
    for left in reversed(range(TRIES)):
        try:
            _ask(uri)
            return
        except HTTPError as error:
            if error.code in (*REFUSED, *NO_MLFLOW):
                return _confirm(uri, error.code)
            reason, is_slow = str(error), False
        except (OSError, HTTPException) as error:
            inner = getattr(error, "reason", error)
            reason, is_slow = str(inner) or type(inner).__name__, isinstance(inner, TimeoutError)
        except ValueError:  # no JSON
            return _confirm(uri, 404)
        if is_slow or not left:
            return _warn(uri, reason)
        time.sleep(RETRY_S)


def _ask(uri: str) -> None:
    request = Request(reveal(uri).rstrip("/") + ASKED, headers=authorization())
    with urlopen(request, timeout=PROBE_S) as answer:
        json.load(answer)


def authorization() -> dict[str, str]:
    user, password, token = (
        os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN")
    )
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _confirm(uri: str, code: int) -> None:
    """Ask again with MLflow itself, which knows more ways to authenticate."""
    try:
        connect(uri)
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
    else:
        return
    if code in REFUSED:
        raise _refusal(
            uri,
            f"the server refuses this user ({code}: {reason})",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    raise _refusal(uri, f"no MLflow server is there ({code}: {reason})", "check host, port and path")


def _warn(uri: str, reason: str) -> None:
    logger.warning(
        "MLflow at %s does not answer (%s): the work goes on, and is recorded when it does", uri, reason
    )
