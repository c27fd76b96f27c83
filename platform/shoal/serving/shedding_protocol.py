"""uvicorn's HTTP protocol with load shedding: a request that is refused costs a search in its bytes, and no parser.

It overrides what uvicorn 0.54 calls, and no other module knows how. A refusal by the app takes a quarter of
the time of an answer: at twice the load the server would mostly refuse.
"""

import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shoal.serving.shedding import Shedder

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.IGNORECASE)
_OTHERWISE = re.compile(
    rb"\r\n(?:transfer-encoding:|expect:|connection:(?![ \t]*keep-alive[ \t]*\r\n))", re.IGNORECASE
)
_VERSION, _END = b" HTTP/1.1\r\n", b"\r\n\r\n"


class SheddingProtocol(HttpToolsProtocol):
    """Refuses POST requests while the server sheds load; all others, and heads in several parts, go on as always."""

    def __init__(self, *given: Any, shedder: Shedder, **named: Any) -> None:
        super().__init__(*given, **named)
        self._shedder = shedder
        self._inside = 0
        self._is_between = True  # requests: the next byte is the first of one
        self._dropping = 0  # bytes of the body of a request that was refused

    def data_received(self, data: bytes) -> None:
        """Drop what was refused, refuse what is to be, and pass on the rest."""
        dropped = min(self._dropping, len(data))
        self._dropping -= dropped
        data = data[dropped:]
        while data and self._is_idle and (size := plain_size(data)) and self._shedder.refuses():
            self._refuse()
            self._dropping = max(0, size - len(data))
            data = data[size:]
        if data:
            super().data_received(data)

    def on_message_begin(self) -> None:
        self._is_between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._is_between = True
        if self.scope["method"] == "POST" and not self.cycle.response_complete:
            self._inside += 1
            self._shedder.entered()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._leave(min(self._inside, 1))
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave(self._inside)
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        return self._is_between and (self.cycle is None or self.cycle.response_complete)

    def _leave(self, requests: int) -> None:
        if requests:
            self._inside -= requests
            self._shedder.left(requests)

    def _refuse(self) -> None:
        """Answer, and close the connection if no further request comes, nor the rest of this one."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.transport.write(self._shedder.refusal())
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


def plain_size(data: bytes) -> int:
    """Return the bytes of the POST request that begins here; 0: of another, or its head is not whole, or not plain."""
    end = data.find(_END)
    if end < 0 or not data.startswith(b"POST "):
        return 0
    head = data[: end + 2]
    lengths = _LENGTH.findall(head)
    if len(lengths) != 1 or _VERSION not in head or _OTHERWISE.search(head):
        return 0
    return end + len(_END) + int(lengths[0])
