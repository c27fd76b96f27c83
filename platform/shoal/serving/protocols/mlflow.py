"""`/invocations`, as MLflow's scoring server takes and answers it."""

from collections.abc import Sequence
from typing import Any

from shoal.inference.predictor import Answers
from shoal.serving.errors import RequestError, invalid, malformed
from shoal.serving.models import ServedModel, Version
from shoal.serving.protocols.base import Query, an_object, plain
from shoal.serving.rows import Columns, columns_of_records, shown
from shoal.serving.signature import Signature

FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")
CODES = {
    400: "BAD_REQUEST",
    422: "INVALID_PARAMETER_VALUE",
    404: "RESOURCE_DOES_NOT_EXIST",
    500: "INTERNAL_ERROR",
}


class MLflowProtocol:
    """`{"dataframe_split": {"columns": [...], "data": [...]}}`, or one of the other three forms."""

    def parse(self, body: Any, signature: Signature) -> Query:
        given = an_object(body, f"one of {', '.join(FORMS)}")
        found = [form for form in FORMS if form in given]
        if len(found) != 1:
            has = (
                f"it has {' and '.join(found)}"
                if found
                else f"its keys are {', '.join(map(str, given))[:200] or 'none'}"
            )
            raise malformed(f"send exactly one of {', '.join(FORMS)}: {has}")
        params = given.get("params") or {}
        if not isinstance(params, dict):
            raise malformed(f"params is {shown(params)}: send an object")
        value = given[found[0]]
        columns = (
            _of_split(value) if found[0] == "dataframe_split" else _of_values(found[0], value, signature)
        )
        return Query(columns, params)

    def render(self, answers: Answers, query: Query, model: ServedModel, version: Version) -> Any:
        columns = [plain(values) for values in answers.values()]
        return {"predictions": [dict(zip(answers, row, strict=True)) for row in zip(*columns, strict=True)]}

    def error(self, error: RequestError) -> Any:
        code = CODES.get(error.status, "BAD_REQUEST" if error.status < 500 else "TEMPORARILY_UNAVAILABLE")
        return {"error_code": code, **error.details}


def _of_split(value: Any) -> Columns:
    """Return columns of a frame as `DataFrame.to_dict(orient="split")` writes it."""
    if not isinstance(value, dict) or not isinstance(value.get("columns"), list):
        raise malformed('dataframe_split is an object {"columns": [...], "data": [[...], ...]}')
    names, data = value["columns"], value.get("data")
    if not isinstance(data, list):
        raise malformed(f"data of dataframe_split is {shown(data)}: send a list with a list for each row")
    for row, values in enumerate(data):
        if not isinstance(values, list) or len(values) != len(names):
            size = f"a list of {len(values)} values" if isinstance(values, list) else shown(values)
            raise invalid(
                f"row {row} is {size}: send a list of {len(names)} values, as there are columns", row
            )
    columns = zip(*data, strict=True) if data else ([] for _ in names)
    return dict(zip(map(str, names), map(list, columns), strict=True))


def _of_values(form: str, value: Any, signature: Signature) -> Columns:
    """Return columns of an object of columns, of a list of objects, or of values of the model's one column."""
    if isinstance(value, dict) and form != "dataframe_records":
        return value
    if not isinstance(value, list):
        raise malformed(f"{form} is {shown(value)}: send a list")
    if form == "dataframe_records" or _are_objects(value):
        return columns_of_records(value, signature)
    if signature.only is None:
        names = ", ".join(field.name for field in signature.fields[:20])
        raise malformed(
            f"{form} is a list of values, and the model takes several columns ({names}): name them"
        )
    return {signature.only.name: value}


def _are_objects(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], dict)
