"""Who may call a server: whoever knows the token, which is an environment variable and never a setting."""

import base64
import binascii
import hmac
import os

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.serving.errors import TOKEN_VARIABLE

# Probes of an orchestrator have no token.
OPEN = ("/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready")


class Guard:
    """An ASGI app that lets requests with the token through: as Bearer, or as a browser sends a password."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._knows(scope):
            await self._app(scope, receive, send)
            return
        message = f"this server needs the token of its {TOKEN_VARIABLE}: send Authorization: Bearer TOKEN"
        answer = JSONResponse(
            {"error": {"status": 401, "message": message}},
            401,
            headers={"WWW-Authenticate": 'Bearer, Basic realm="shoal, any user, the token as password"'},
        )
        await answer(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, secret = given.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(secret.strip(), self._token)


def guarded(app: ASGIApp) -> ASGIApp:
    """Return an app behind the token of this process's environment, if there is one."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    return Guard(app, token) if token else app
