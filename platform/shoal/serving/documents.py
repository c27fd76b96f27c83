"""What a server says of itself, made of its models' signatures: OpenAPI, the page `/docs`, the page to try a model."""

import html
import json
from functools import cache
from importlib.resources import files
from typing import Any

from shoal.serving.models import Models, Version
from shoal.serving.signature import Signature
from shoal.version import VERSION

REFUSALS = {
    "400": "the body is no JSON, or not in this form",
    "401": "the token is missing or wrong",
    "408": "the request took longer than serve.timeout_s",
    "413": "the body or its rows are more than allowed",
    "422": "a value does not fit the signature; the answer names row and column",
    "503": "too many requests are waiting; Retry-After says in how many seconds to try again",
}


def openapi(models: Models) -> dict[str, Any]:
    """Return the OpenAPI document of all routes that predict."""
    paths: dict[str, Any] = {}
    for name, version in models.identities.items():
        is_first = name == models.first.name
        for path, operation in _operations(name, version).items():
            paths[path.format(name=name)] = {"post": operation}
            if is_first and path.startswith("/models/{name}"):
                paths[path.removeprefix("/models/{name}")] = {"post": operation}
    for path, text in {
        "/health": "whether the server lives",
        "/ready": "whether it answers, and with which versions",
        "/metrics": "for Prometheus",
    }.items():
        paths[path] = {"get": {"summary": text, "responses": {"200": {"description": text}}}}
    return {"openapi": "3.1.0", "info": {"title": "Shoal", "version": VERSION}, "paths": paths}


def page(models: Models) -> str:
    """Return the page on which a person tries the models."""
    described = [
        {
            "name": name,
            "version": version.number,
            "digest": version.digest,
            "task": version.signature.task,
            "fields": [field.described() for field in version.signature.fields],
            "params": dict(version.signature.params),
            "continues": version.signature.continues_text,
        }
        for name, version in models.identities.items()
    ]
    return _template("page.html").replace("__MODELS__", _inline(described))


def docs(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as a page; it loads nothing from elsewhere."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(path, method, operation))
    return _template("docs.html").replace("__ROUTES__", "\n".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    found = [
        f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>"
    ]
    media = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    for title, example in media.get("examples", {}).items():
        text = json.dumps(example["value"], ensure_ascii=False)
        command = f"curl -X POST $SERVER{path} -H 'Content-Type: application/json' -d '{_quoted(text)}'"
        found.append(f"<h3>{html.escape(title)}</h3><pre>{html.escape(command)}</pre>")
    if "schema" in media:
        schema = json.dumps(media["schema"], indent=1, ensure_ascii=False)
        found.append(f"<details><summary>schema</summary><pre>{html.escape(schema)}</pre></details>")
    rows = "".join(
        f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    found.append(f"<details><summary>answers</summary><table>{rows}</table></details>")
    return f"<section>{''.join(found)}</section>"


def _operations(name: str, version: Version) -> dict[str, Any]:
    """Return the operations of a model by path."""
    signature = version.signature
    example = signature.example
    records = [{key: values[0] for key, values in example.items()}] if example else None
    split = {"columns": list(example), "data": [[v[0] for v in example.values()]]} if example else None
    mlflow = {"dataframe_records": records, "dataframe_split": split, "inputs": example}
    columns = _columns_schema(signature)
    found = {
        "/models/{name}/predict": _described(
            f"{name}: columns in, columns out ({signature.task})", columns, {"columns": example}
        ),
        "/models/{name}/invocations": _described(
            f"{name}: as MLflow's scoring server",
            {"type": "object", "properties": {"inputs": columns, "dataframe_records": {"type": "array"},
             "dataframe_split": {"type": "object"}, "instances": {"type": "array"}, "params": {"type": "object"}}},
            {form: value and {form: value} for form, value in mlflow.items()},
        ),
        "/v2/models/{name}/infer": _described(
            f"{name}: open inference protocol V2", _v2_schema(signature), {"V2": _v2_example(signature, example)}
        ),
    }  # fmt: skip
    if signature.continues_text:
        text = {
            "model": name,
            "prompt": "Once upon a time",
            "max_tokens": 16,
            "temperature": 0.8,
            "stream": True,
        }
        schema = {
            "type": "object",
            "required": ["prompt"],
            "properties": {
                "model": {"type": "string"}, "prompt": {"type": ["string", "array"]},
                "max_tokens": {"type": "integer"}, "temperature": {"type": "number"},
                "seed": {"type": "integer"}, "stream": {"type": "boolean"},
            },
        }  # fmt: skip
        found["/v1/completions"] = _described("text continued, as of OpenAI", schema, {"streamed": text})
    return found


def _described(summary: str, schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    media = {"schema": schema, "examples": {k: {"value": v} for k, v in examples.items() if v}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": media}},
        "responses": {"200": {"description": "the predictions"}}
        | {status: {"description": text} for status, text in REFUSALS.items()},
    }


def _columns_schema(signature: Signature) -> dict[str, Any]:
    properties = {
        field.name: {"type": "array", "minItems": 1, "items": field.schema} for field in signature.fields
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _v2_schema(signature: Signature) -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"enum": [field.name for field in signature.fields]},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string"},
            "data": {"type": "array"},
        },
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": {"type": "array", "items": tensor}},
    }


def _v2_example(signature: Signature, example: dict[str, list[Any]] | None) -> dict[str, Any] | None:
    if example is None:
        return None
    tensors = [
        {"name": f.name, "shape": [1, *f.shape], "datatype": f.datatype, "data": example[f.name]}
        for f in signature.fields
    ]
    return {"inputs": tensors}


@cache
def _template(name: str) -> str:
    return (files("shoal.serving") / name).read_text()


def _inline(value: Any) -> str:
    """Return JSON that a script element may hold."""
    return json.dumps(value).replace("<", "\\u003c")


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")
