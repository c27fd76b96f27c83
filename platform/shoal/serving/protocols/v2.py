"""The open inference protocol, version 2, in JSON: `/v2/models/NAME/infer`."""

import json
from typing import Any

import numpy as np

from shoal.inference.predictor import Answers
from shoal.serving.errors import RequestError, invalid, malformed
from shoal.serving.models import ServedModel, Version
from shoal.serving.protocols.base import Query, an_object, plain
from shoal.serving.rows import shown
from shoal.serving.signature import DATATYPES, Signature

READ = {name: dtype for dtype, name in DATATYPES.items()} | {"BYTES": "object"}


class V2Protocol:
    """`{"inputs": [{"name": "age", "shape": [2], "datatype": "FP64", "data": [31, 52]}]}`."""

    def parse(self, body: Any, signature: Signature) -> Query:
        given = an_object(body, 'a list of tensors, "inputs"')
        inputs = given.get("inputs")
        if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
            raise malformed(
                f"inputs is {shown(inputs)}: send a list of objects with name, shape, datatype and data"
            )
        columns = {str(one.get("name", "")): _values(one, signature) for one in inputs}
        outputs = given.get("outputs")
        names = None
        if outputs is not None:
            if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
                raise malformed(f"outputs is {shown(outputs)}: send a list of objects with name")
            names = tuple(str(one.get("name", "")) for one in outputs)
        params = given.get("parameters") or {}
        wanted = {name: value for name, value in params.items() if name in signature.params}
        return Query(columns, wanted, given.get("id"), names)

    def render(self, answers: Answers, query: Query, model: ServedModel, version: Version) -> Any:
        names = query.outputs or tuple(answers)
        unknown = next((name for name in names if name not in answers), None)
        if unknown is not None:
            raise invalid(f"there is no output '{unknown}': the model returns {', '.join(answers)}")
        found: dict[str, Any] = {
            "model_name": model.name,
            "model_version": version.number,
            "parameters": {"digest": version.digest},
            "outputs": [_tensor(name, answers[name]) for name in names],
        }
        return found if query.id is None else {"id": query.id, **found}

    def error(self, error: RequestError) -> Any:
        return {"error": error.message, **{k: v for k, v in error.details.items() if k in ("row", "column")}}


def describe(model: ServedModel) -> dict[str, Any]:
    """Return a model's metadata: its inputs and outputs as tensors, -1 where a dimension differs."""
    signature = model.current.signature
    inputs = [
        {
            "name": f.name,
            "datatype": f.datatype,
            "shape": [-1, *([-1, *f.shape[1:]] if f.is_ragged else f.shape)],
        }
        for f in signature.fields
    ]
    kind = _datatype(np.asarray(signature.classes)) if signature.classes else "FP64"
    outputs = [{"name": "prediction", "datatype": "BYTES" if signature.params else kind, "shape": [-1]}]
    if signature.finds_boxes:
        outputs = [
            {"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("prediction", "boxes", "scores")
        ]
    elif signature.classes:
        outputs.append({"name": "probabilities", "datatype": "FP64", "shape": [-1, len(signature.classes)]})
    return {
        "name": model.name,
        "versions": [model.current.number],
        "platform": "shoal",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {"digest": model.current.digest},
    }


def _values(tensor: dict[str, Any], signature: Signature) -> Any:
    """Return a tensor's rows; its data may be flat or nested."""
    name, shape, datatype = str(tensor.get("name", "")), tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape) or not shape:
        raise malformed(f"shape of input '{name}' is {shown(shape)}: send a list of sizes, rows first")
    if datatype not in READ:
        raise malformed(f"datatype of input '{name}' is {shown(datatype)}: it is one of {', '.join(READ)}")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise malformed(f"data of input '{name}' is {shown(data)}: send a list (binary data are not read)")
    is_flat = not (data and isinstance(data[0], list))
    field = signature.by_name.get(name)
    if len(shape) == 1 or (is_flat and shape[1:] == [1] and field is not None and field.kind != "array"):
        if is_flat and len(data) != shape[0]:
            raise _misshapen(name, shape, len(data))
        return data
    if not is_flat:
        return data
    if len(data) != int(np.prod(shape)):
        raise _misshapen(name, shape, len(data))
    try:
        found = np.array(data)
    except (ValueError, OverflowError):
        found = np.array(data, dtype=object)
    return found.reshape(shape) if found.dtype.kind in "fiub" else found.reshape(shape).tolist()


def _misshapen(name: str, shape: list[int], count: int) -> RequestError:
    return malformed(f"input '{name}' of shape {shape} has {count} values: it needs {int(np.prod(shape))}")


def _tensor(name: str, values: Any) -> dict[str, Any]:
    array = np.asarray(values)
    flat = plain(array.reshape(-1))
    if flat and isinstance(flat[0], list):  # a length of its own for each row, which a tensor does not have
        flat = [json.dumps(row) for row in flat]
    return {"name": name, "shape": list(array.shape), "datatype": _datatype(array), "data": flat}


def _datatype(array: np.ndarray) -> str:
    return DATATYPES.get(str(array.dtype), "BYTES")
