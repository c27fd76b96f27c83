"""A request becomes an answer: body, protocol, checked rows, batch, protocol again. The same for all protocols."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from shoal.errors import UserError
from shoal.inference.predictor import Answers
from shoal.serving.body import read_json
from shoal.serving.config import ServeSection
from shoal.serving.errors import RequestError, invalid
from shoal.serving.metrics import Metrics
from shoal.serving.models import Models, ServedModel, Version
from shoal.serving.protocols import completions
from shoal.serving.protocols.base import InferenceProtocol, check_params
from shoal.serving.rows import check_rows

logger = logging.getLogger(__name__)


class Answerer:
    """Answers requests with the models of a server."""

    def __init__(self, models: Models, config: ServeSection, metrics: Metrics) -> None:
        self.models, self.config, self.metrics = models, config, metrics

    async def predict(
        self,
        request: Request,
        protocol: InferenceProtocol,
        route: str,
        name: str | None = None,
        number: str | None = None,
    ) -> Response:
        """Answer with predictions.

        Args:
            route: by which it is counted.
            name: of a model; None: the one whose turn it is.
            number: of a version that must be the one that answers.
        """
        return await self._respond(
            route, protocol.error, lambda: self._predict(request, protocol, name, number)
        )

    async def complete(self, request: Request) -> Response:
        """Answer with text, streamed if asked for."""
        return await self._respond("/v1/completions", completions.refusal, lambda: self._complete(request))

    async def _respond(
        self, route: str, refusal: Callable[[RequestError], Any], answer: Callable[[], Awaitable[Response]]
    ) -> Response:
        """Return an answer, or a refusal in the protocol's form; count it."""
        since = time.perf_counter()
        try:
            response = await answer()
        except RequestError as error:
            response = refused(error, refusal)
        except UserError as error:  # of the model: its message is for the sender
            response = refused(invalid(" ".join(str(error).split())), refusal)
        except Exception:
            logger.exception("a request to %s failed", route)
            failure = RequestError(500, "the server failed at this request; its log has the reason")
            response = refused(failure, refusal)
        self.metrics.answered(route, response.status_code, time.perf_counter() - since)
        return response

    async def _predict(
        self, request: Request, protocol: InferenceProtocol, name: str | None, number: str | None
    ) -> Response:
        model = self.models.find(name)
        self.models.check_version(model, number)
        version = model.current
        with version.batcher.admitted():
            async with self._limited(time.monotonic() + self.config.timeout_s):
                body = await read_json(request, self.config.max_body_bytes)
                query = protocol.parse(body, version.signature)
                given = {**query.params, **_of_query_string(request)}
                params = check_params(given, version.signature, self.config.max_new_tokens)
                rows = check_rows(query.columns, version.signature, self.config.max_rows)
                answers = await version.batcher.predict(rows, params)
        content = _as_json(protocol.render(answers, query, model, version), answers)
        headers = identity(model, version)
        if rows.ignored:
            headers["Shoal-Ignored-Columns"] = _as_header(", ".join(rows.ignored))
        return Response(content, media_type="application/json", headers=headers)

    async def _complete(self, request: Request) -> Response:
        deadline = time.monotonic() + self.config.timeout_s
        async with self._limited(deadline):
            body = await read_json(request, self.config.max_body_bytes)
            model = self.models.find(completions.model_name(body))
            version = model.current
            if not version.signature.continues_text:
                raise RequestError(400, f"model '{model.name}' continues no text: use /predict")
            asked = completions.parse(body, version, self.config.max_new_tokens, self.config.max_rows)
            rendered, pieces = completions.Rendered(model, version), _pieces(version, asked)
            if asked.is_streamed:
                first = await anext(pieces)  # what is refused is refused before the stream begins
                stream = self._stream(first, pieces, rendered, deadline)
                return StreamingResponse(
                    stream, media_type="text/event-stream", headers=identity(model, version)
                )
            texts, reasons = [""] * len(asked.prompts), [""] * len(asked.prompts)
            async for index, text, reason in pieces:
                texts[index] += text
                reasons[index] = reason or reasons[index]
        content = _as_json(rendered.whole(texts, reasons), {})
        return Response(content, media_type="application/json", headers=identity(model, version))

    async def _stream(
        self,
        first: tuple[int, str, str | None],
        pieces: AsyncIterator[tuple[int, str, str | None]],
        rendered: completions.Rendered,
        deadline: float,
    ) -> AsyncIterator[bytes]:
        try:
            yield rendered.chunk(*first)
            while True:
                async with self._limited(deadline):
                    index, text, reason = await anext(pieces)
                if text or reason:
                    yield rendered.chunk(index, text, reason)
        except StopAsyncIteration:
            yield completions.DONE
        except RequestError as error:
            yield completions.failed(error)
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    def _limited(self, deadline: float) -> "_Limited":
        return _Limited(deadline, self.config.timeout_s)


class _Limited:
    """What is inside ends at a time, with 408: it is the server's, no header of a client changes it."""

    def __init__(self, deadline: float, seconds: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        self._timeout, self._seconds = asyncio.timeout(left), seconds

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise RequestError(
                408,
                f"the request took longer than {self._seconds:g} s (serve.timeout_s)",
                headers={"Connection": "close"},
            ) from None


async def _pieces(
    version: Version, asked: completions.Completion
) -> AsyncIterator[tuple[int, str, str | None]]:
    """Yield pieces of text by the number of their prompt, the last of each with the reason why it ends."""
    with version.batcher.admitted():
        for index, prompt in enumerate(asked.prompts):
            count = 0
            async for text in version.batcher.stream(prompt, asked.params):
                count += 1
                yield index, text, None
            yield index, "", completions.reason_of(count, asked.params)


def refused(error: RequestError, render: Callable[[RequestError], Any]) -> Response:
    """Return the answer to a request that is refused."""
    return Response(
        json.dumps(render(error)), error.status, headers=error.headers, media_type="application/json"
    )


def identity(model: ServedModel, version: Version) -> dict[str, str]:
    """Return the headers that name the model that answered."""
    return {
        "Shoal-Model": _as_header(model.name),
        "Shoal-Version": _as_header(version.number),
        "Shoal-Digest": version.digest,
    }


def _as_header(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:1000]


def _of_query_string(request: Request) -> dict[str, Any]:
    if not request.scope["query_string"]:
        return {}
    return {name: _number(text) for name, text in request.query_params.items()}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _as_json(content: Any, answers: Answers) -> bytes:
    """Return an answer's bytes.

    Raises:
        RequestError: a number of the answer is not finite, which JSON does not have.
    """
    try:
        return json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        rows = [
            row for values in answers.values() for row, value in enumerate(values) if not _is_finite(value)
        ]
        row = min(rows, default=None)
        raise invalid(
            f"row {row}: the model returns no finite number for it: are its values usual?", row
        ) from None


def _is_finite(value: Any) -> bool:
    array = np.asarray(value)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
