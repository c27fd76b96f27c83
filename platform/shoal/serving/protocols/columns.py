"""`/predict`: columns in, columns out. Parameters of a prediction are in the query string."""

from typing import Any

from shoal.inference.predictor import Answers
from shoal.serving.errors import RequestError
from shoal.serving.models import ServedModel, Version
from shoal.serving.protocols.base import Query, an_object, plain
from shoal.serving.signature import Signature


class ColumnsProtocol:
    """`{"age": [31, 52], "city": ["Oslo", null]}`."""

    def parse(self, body: Any, signature: Signature) -> Query:
        return Query(an_object(body, 'a list of values for each column, e.g. {"age": [31, 52]}'))

    def render(self, answers: Answers, query: Query, model: ServedModel, version: Version) -> Any:
        found = {name: plain(values) for name, values in answers.items()}
        if version.signature.classes and "probabilities" in found:
            found["classes"] = list(version.signature.classes)
        return {**found, "model": {"name": model.name, "version": version.number, "digest": version.digest}}

    def error(self, error: RequestError) -> Any:
        return {"error": error.details}
