"""uvicorn around the app, until a signal or `stop`: what has begun is answered, and nothing new is taken."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from shoal.errors import ConfigError
from shoal.processes import STOP_SIGNALS
from shoal.serving.shedding import Shedder
from shoal.serving.shedding_protocol import SheddingProtocol

BACKLOG = 2048
GRACE_S = 30  # for what is being answered when the server ends
# Of an idle connection. Proxies keep theirs for 60 s: one that they use while it is closed here is a request lost.
KEEP_ALIVE_S = 75


class Server(uvicorn.Server):
    """A server that leaves signals to its caller: uvicorn would raise them again once it has ended."""

    def __init__(self, app: ASGIApp, grace_s: float = GRACE_S, shedder: Shedder | None = None) -> None:
        """Take an app.

        Args:
            grace_s: for what is being answered when the server ends.
            shedder: refuses requests under overload; None: the app alone does.
        """
        config = uvicorn.Config(
            app,
            http=partial(SheddingProtocol, shedder=shedder) if shedder else "auto",  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=int(grace_s),
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def stop(self) -> None:
        """Answer what has begun, then end."""
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Open the address, before anything costly is started.

    Raises:
        ConfigError: it cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Head and body of an answer are two writes: the second would wait for the client's delayed ACK, 40 ms.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        opened.bind((host, port))
    except (OSError, OverflowError) as error:
        opened.close()
        raise ConfigError(
            f"serve.host={host}, serve.port={port}: this address cannot be opened ({error}): set another serve.port, "
            "or 0 for a free one"
        ) from None
    opened.listen(BACKLOG)
    return opened


def on_signals(stop: "asyncio.Event") -> None:
    """Set an event at the first signal that ends a process; only a main thread receives any."""
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        with contextlib.suppress(ValueError, RuntimeError):
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, stop.set)
