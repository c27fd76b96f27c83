"""`/v1/completions`, as OpenAI's clients send and read it, of a model that continues text."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.serving.errors import RequestError, malformed
from shoal.serving.models import ServedModel, Version
from shoal.serving.protocols.base import an_object, check_params
from shoal.serving.rows import shown

# Values of OpenAI's other keys that change nothing; any other value is refused, not ignored.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1, None), "best_of": (1, None), "echo": (False, None), "logprobs": (None,), "suffix": (None,),
    "stop": (None, []), "top_p": (1, None), "frequency_penalty": (0, None), "presence_penalty": (0, None),
    "logit_bias": (None, {}),
}  # fmt: skip
READ = ("model", "prompt", "max_tokens", "temperature", "seed", "stream", "stream_options", "user")
DONE = b"data: [DONE]\n\n"
DEFAULT_TOKENS = 16  # OpenAI's
PARAMS = {"max_tokens": "max_new_tokens", "temperature": "temperature", "seed": "seed"}  # OpenAI's name: ours


@dataclass(frozen=True)
class Completion:
    """What a request asks.

    Attributes:
        params: of `Predictor.predict`.
    """

    prompts: list[str]
    params: dict[str, Any]
    is_streamed: bool


def model_name(body: Any) -> str | None:
    """Return the model that a request names; None: it names none."""
    name = an_object(body, '"prompt"').get("model")
    return None if name is None else str(name)


def parse(body: dict[str, Any], version: Version, most_tokens: int, most_prompts: int) -> Completion:
    """Read a request.

    Raises:
        RequestError: it is not in this form, or asks for what is not there.
    """
    for key, value in body.items():
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise RequestError(422, f"{key}={shown(value)}: it is not supported here, leave it out")
        if key not in NEUTRAL and key not in READ:
            raise RequestError(422, f"'{key}' is not known: the keys are {', '.join(READ)}")
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise malformed(f"prompt is {shown(prompt)}: send a text, or a list of texts")
    if len(prompts) > most_prompts:
        raise RequestError(413, f"{len(prompts)} prompts in one request: send at most {most_prompts}")
    given = {to: body[name] for name, to in PARAMS.items() if body.get(name) is not None}
    drawn = {"max_new_tokens": DEFAULT_TOKENS, "seed": secrets.randbits(31)}
    sent_as = {to: name for name, to in PARAMS.items()}
    params = check_params(drawn | given, version.signature, most_tokens, sent_as)
    return Completion(prompts, params, bool(body.get("stream")))


class Rendered:
    """The answers to one request, which share an ID."""

    def __init__(self, model: ServedModel, version: Version) -> None:
        self._same = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": version.digest or version.number,
        }

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [self._choice(*one) for one in zip(range(len(texts)), texts, reasons, strict=True)]
        return {**self._same, "choices": choices}

    def chunk(self, index: int, text: str, reason: str | None = None) -> bytes:
        """Return a part of a streamed answer, as a server-sent event."""
        return _event({**self._same, "choices": [self._choice(index, text, reason)]})

    def _choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def failed(error: RequestError) -> bytes:
    """Return a refusal in the middle of a stream."""
    return _event(refusal(error))


def refusal(error: RequestError) -> dict[str, Any]:
    """Return a refusal's JSON value."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"type": kind, "param": error.column, "code": error.status, **error.details}}


def reason_of(pieces: int, params: Mapping[str, Any]) -> str:
    """Return why a text ended: each token is a piece, and the last piece is none."""
    return "length" if pieces > params["max_new_tokens"] else "stop"


def _event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
