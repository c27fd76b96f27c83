"""A real S3 server in this process, whose requests are counted and which can be away for a while."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import Request, urlopen

import pytest


class ObjectStore:
    """A server with one bucket, at a port of its own.

    Attributes:
        env: what tells a process where it is.
        requests: (monotonic seconds, method and path) of each request that was answered.
        is_away: whether connections are cut, as where a server or the way to it is gone.
    """

    uri = "s3://bucket"

    def __init__(self) -> None:
        app_module = pytest.importorskip("moto.moto_server.werkzeug_app")
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self.requests: list[tuple[float, str]] = []
        self.is_away = False
        self._app = app_module.DomainDispatcherApplication(app_module.create_backend_app)
        handler = app_module.MotoRequestHandler
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=handler)
        self._address = f"http://127.0.0.1:{self._server.server_port}"
        self.env = {
            "AWS_ENDPOINT_URL": self._address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._make_bucket()

    def _make_bucket(self) -> None:
        urlopen(Request(f"{self._address}/bucket", method="PUT"))

    def clear(self) -> None:
        """Forget what the stores of this process hold: it is the same."""
        urlopen(Request(f"{self._address}/moto-api/reset", method="POST"))
        self._make_bucket()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.is_away:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError  # which the server takes for a client that is gone
        method, path, query = (environ[key] for key in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        self.requests.append((time.monotonic(), f"{method} {path}?{query}"))
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer
