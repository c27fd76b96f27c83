"""What a protocol does: a body becomes columns, answers become a body."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shoal.errors import nearest
from shoal.inference.predictor import Answers
from shoal.serving.errors import RequestError, malformed
from shoal.serving.models import ServedModel, Version
from shoal.serving.rows import Columns, shown
from shoal.serving.signature import Signature


@dataclass(frozen=True)
class Query:
    """What a request asks.

    Attributes:
        columns: not checked yet.
        params: of the prediction, not checked yet.
        id: that the answer repeats.
        outputs: that are asked for; None: all.
    """

    columns: Columns
    params: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    outputs: tuple[str, ...] | None = None


class InferenceProtocol(Protocol):
    """The form of a request and of its answer."""

    def parse(self, body: Any, signature: Signature) -> Query:
        """Read a body.

        Raises:
            RequestError: 400, it is not in the protocol's form.
        """
        ...

    def render(self, answers: Answers, query: Query, model: ServedModel, version: Version) -> Any:
        """Return the answer's JSON value."""
        ...

    def error(self, error: RequestError) -> Any:
        """Return a refusal's JSON value."""
        ...


def an_object(body: Any, forms: str) -> dict[str, Any]:
    """Return a body that is an object.

    Raises:
        RequestError: it is something else.
    """
    if not isinstance(body, dict):
        raise malformed(f"the body is {shown(body)}: send an object with {forms}")
    return body


def plain(values: Any) -> Any:
    """Return answers as JSON has them."""
    return values.tolist() if isinstance(values, np.ndarray) else values


def check_params(
    given: Mapping[str, Any], signature: Signature, most_tokens: int, sent_as: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the parameters of a prediction, complete and in their types.

    Args:
        sent_as: what the sender calls a parameter, where it has another name there.

    Raises:
        RequestError: 422, one is unknown or out of range.
    """
    found, sent_as = dict(signature.params), sent_as or {}
    for name, value in given.items():
        if name not in found:
            known = f": the model takes {', '.join(found)}" if found else ": the model takes none"
            raise RequestError(422, f"parameter '{name}' is not known{nearest(name, found)}{known}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(found[name], int) and value != int(value)):
            wanted = "a whole number" if isinstance(found[name], int) else "a number"
            raise RequestError(422, f"{sent_as.get(name, name)}={shown(value)}: it should be {wanted}")
        found[name] = type(found[name])(value)
    bounds = {"max_new_tokens": (1, most_tokens), "temperature": (0, 100), "seed": (0, 2**63 - 1)}
    for name, (least, most) in bounds.items():
        if name in found and name in given and not least <= found[name] <= most:
            sent = f"{sent_as.get(name, name)}={shown(given[name])}"
            raise RequestError(422, f"{sent}: it should be from {least} to {most}")
    return found
