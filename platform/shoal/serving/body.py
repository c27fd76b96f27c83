"""The body of a request, as JSON, no larger than allowed, whether or not its length is announced."""

import asyncio
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from shoal.serving.errors import RequestError, malformed

DRAIN_S = 5.0  # for which the rest of a body is read and dropped, so that its sender reads the answer


async def read_json(request: Request, most_bytes: int) -> Any:
    """Return the JSON value of a body.

    Raises:
        RequestError: 413 for a larger body, 415 for another type, 400 for what is no JSON.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "text/json", "application/x-www-form-urlencoded", ""):
        raise RequestError(415, f"Content-Type '{kind}' is not read here: send application/json")
    body = await _read(request, most_bytes)
    try:
        return from_json(body)  # five times as fast as the standard library for 1,000 numbers: 46 us, not 244
    except ValueError as error:
        raise malformed(f"the body is no JSON: {error}") from None


async def _read(request: Request, most_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    is_large = announced.isdecimal() and int(announced) > most_bytes
    parts, size = [], 0
    if not is_large:
        try:
            async for part in request.stream():
                size += len(part)
                if size > most_bytes:
                    is_large = True
                    break
                parts.append(part)
        except ClientDisconnect:
            raise RequestError(499, "the client has gone") from None
    if is_large:
        parts.clear()
        if "expect" not in request.headers:
            await _drain(request)
        raise RequestError(
            413,
            f"the body is larger than {most_bytes / 1e6:g} MB (serve.max_body_mb): send fewer rows at a time",
            headers={"Connection": "close"},
        )
    return b"".join(parts)


async def _drain(request: Request) -> None:
    """Drop what is still sent, for a while: a sender whose connection is closed meanwhile reads no answer."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while (await request.receive()).get("more_body"):
                pass
    except TimeoutError:
        pass
