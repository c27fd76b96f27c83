"""The routes of a server, as one ASGI app."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from shoal.errors import nearest
from shoal.serving import documents
from shoal.serving.answer import Answerer
from shoal.serving.config import ServeSection
from shoal.serving.errors import RequestError
from shoal.serving.guard import guarded
from shoal.serving.metrics import CONTENT_TYPE, Metrics
from shoal.serving.models import Models
from shoal.serving.protocols import v2
from shoal.serving.protocols.base import InferenceProtocol
from shoal.serving.protocols.columns import ColumnsProtocol
from shoal.serving.protocols.mlflow import MLflowProtocol
from shoal.version import VERSION

Handler = Callable[[Request], Awaitable[Response]]
STUCK_S = 60.0  # of one batch beyond the time limit, after which the server calls itself ill


def make_app(models: Models, config: ServeSection, metrics: Metrics) -> ASGIApp:
    """Return the app; behind the token of the environment, if there is one."""
    metrics.watch(models)
    app = FastAPI(title="Shoal", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    answerer = Answerer(models, config, metrics)
    _add_predictions(app, answerer)
    _add_v2(app, models)
    _add_health(app, models, config)
    _add_pages(app, models, metrics)
    app.add_exception_handler(HTTPException, _explain)
    return guarded(app)


def _add_predictions(app: FastAPI, answerer: Answerer) -> None:
    for path, protocol in (("/predict", ColumnsProtocol()), ("/invocations", MLflowProtocol())):
        app.add_route(path, _predicts(answerer, protocol, path), ["POST"])
        app.add_route(f"/models/{{name}}{path}", _predicts(answerer, protocol, path), ["POST"])
    infer = _predicts(answerer, v2.V2Protocol(), "/v2/infer")
    app.add_route("/v2/models/{name}/infer", infer, ["POST"])
    app.add_route("/v2/models/{name}/versions/{number}/infer", infer, ["POST"])
    app.add_route("/v1/completions", answerer.complete, ["POST"])


def _predicts(answerer: Answerer, protocol: InferenceProtocol, route: str) -> Handler:
    async def predict(request: Request) -> Response:
        given = request.path_params
        return await answerer.predict(request, protocol, route, given.get("name"), given.get("number"))

    return predict


def _add_v2(app: FastAPI, models: Models) -> None:
    async def server(_: Request) -> Response:
        return JSONResponse({"name": "shoal", "version": VERSION, "extensions": []})

    async def described(request: Request) -> Response:
        return _of_model(models, request, v2.describe)

    async def is_ready(request: Request) -> Response:
        return _of_model(models, request, lambda model: {"name": model.name, "ready": True})

    async def list_models(_: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "shoal"} for name in models.by_name]
        return JSONResponse({"object": "list", "data": data})

    app.add_route("/v2", server)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{number}"):
        app.add_route(path, described)
        app.add_route(f"{path}/ready", is_ready)
    app.add_route("/v1/models", list_models)


def _of_model(models: Models, request: Request, describe: Callable[[Any], Any]) -> Response:
    try:
        model = models.find(request.path_params["name"])
        models.check_version(model, request.path_params.get("number"))
    except RequestError as error:
        return JSONResponse({"error": error.message}, error.status)
    return JSONResponse(describe(model))


def _add_health(app: FastAPI, models: Models, config: ServeSection) -> None:
    async def health(_: Request) -> Response:
        """Answer whether the models compute: the event loop goes on while one hangs."""
        ill = [
            name
            for name, version in models.identities.items()
            if version.batcher.stuck_for_s() > config.timeout_s + STUCK_S
        ]
        return JSONResponse({"status": "stuck" if ill else "ok", "stuck": ill}, 503 if ill else 200)

    async def ready(_: Request) -> Response:
        found = {
            name: {"version": version.number, "digest": version.digest}
            for name, version in models.identities.items()
        }
        return JSONResponse({"ready": True, "models": found})

    async def version(_: Request) -> Response:
        return PlainTextResponse(VERSION)

    for path in ("/health", "/ping", "/v2/health/live"):
        app.add_route(path, health)
    for path in ("/ready", "/v2/health/ready"):
        app.add_route(path, ready)
    app.add_route("/version", version)


def _add_pages(app: FastAPI, models: Models, metrics: Metrics) -> None:
    async def page(_: Request) -> Response:
        return HTMLResponse(documents.page(models))

    async def docs(_: Request) -> Response:
        return HTMLResponse(documents.docs(documents.openapi(models)))

    async def openapi(_: Request) -> Response:
        return JSONResponse(documents.openapi(models))

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    app.add_route("/", page)
    app.add_route("/docs", docs)
    app.add_route("/openapi.json", openapi)
    app.add_route("/metrics", show_metrics)


async def _explain(request: Request, error: Exception) -> Response:
    """Answer a route that is not there, or not by this method."""
    assert isinstance(error, HTTPException)
    paths = sorted({route.path for route in request.app.routes})
    path = request.url.path[:200]
    message = {
        404: f"there is no route '{path}'{nearest(path, paths)}: GET /docs lists them",
        405: f"'{path}' does not take {request.method}: GET /docs says what it takes",
    }.get(error.status_code, str(error.detail))
    body = json.dumps({"error": {"status": error.status_code, "message": message}})
    return Response(body, error.status_code, headers=dict(error.headers or {}), media_type="application/json")
