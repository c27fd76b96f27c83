"""Models as an application of Ray Serve, which `serve deploy` and KubeRay's RayService start and keep running.

Each replica is a whole server, with the routes of `shoal serve`; Ray Serve's proxies take the requests and Ray Serve
replaces replicas. `cluster.serving` is the other way round: one server of a job, whose batches replicas answer.
Depends on `serving`.
"""

import asyncio
import tempfile
from typing import Any

from pydantic import Field, field_validator
from starlette.types import ASGIApp

from shoal.config.schema import Section
from shoal.registry.model_uri import pinned_uri
from shoal.runs.locations import resolve_tracking_uri
from shoal.serving.app import make_app
from shoal.serving.config import ServeSection
from shoal.serving.loading import load_here, names_of, version_of
from shoal.serving.metrics import Metrics
from shoal.serving.models import Models, ServedModel, Started, Version
from shoal.serving.takeover import follow
from shoal.tracking.config import StoreConfig

DEPLOYMENT = "model"  # as Ray Serve's config calls it
OF_RAY_SERVE = {"host", "port", "replicas", "max_replicas"}


class AppConfig(Section):
    """The `args` of the application."""

    models: tuple[str, ...] = Field(
        min_length=1, description="a run folder, runs:/ID or models:/NAME@ALIAS each"
    )
    trust_code: bool = Field(False, description="run the model's own code, which lies in the saved model")
    serve: ServeSection = Field(default_factory=ServeSection)
    track: StoreConfig = Field(default_factory=StoreConfig)

    @field_validator("serve")
    @classmethod
    def _leaves_to_ray_serve_what_is_its(cls, serve: ServeSection) -> ServeSection:
        if given := sorted(serve.model_fields_set & OF_RAY_SERVE):
            raise ValueError(
                f"serve.{given[0]} is Ray Serve's here: set num_replicas or autoscaling_config of the deployment, or "
                "http_options"
            )
        return serve


class Server:
    """The models in this process, behind the routes of a server; what Ray Serve makes a replica of."""

    def __init__(self, config: AppConfig) -> None:
        """Load the models, in Ray Serve's event loop; their golden rows come out as recorded.

        Raises:
            ModelError: a model is not there, or is refused.
        """
        import torch

        torch.set_num_threads(max(1, int(config.serve.cpus_per_replica)))
        self._config, self._metrics = config, Metrics()
        self._tracking_uri = resolve_tracking_uri(config.track)
        self._scratch = tempfile.TemporaryDirectory()  # lasts as long as the models
        loaded = [self._version(uri, self._load(uri)) for uri in map(self._locate, config.models)]
        served = [
            ServedModel(*one) for one in zip(names_of(config.models), config.models, loaded, strict=True)
        ]
        self._models = Models(served, config.serve.weights)
        every_s = config.serve.look_every_s
        self._followers = [
            asyncio.create_task(follow(model, self._locate, self._load_beside, every_s, self._metrics))
            for model in served
            if model.current.uri != model.uri
        ]

    def _locate(self, uri: str) -> str:
        return pinned_uri(uri, self._tracking_uri)

    def _load(self, uri: str) -> Started:
        return load_here(uri, self._tracking_uri, self._config.trust_code, self._scratch.name)

    def _version(self, uri: str, started: Started) -> Version:
        return version_of(uri, started, self._config.serve, self._metrics)

    async def _load_beside(self, uri: str) -> Version:
        return self._version(uri, await asyncio.to_thread(self._load, uri))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the routes, as Ray Serve asks for them."""
        return make_app(self._models, self._config.serve, self._metrics)


def app(config: AppConfig) -> Any:
    """Return the application, of one deployment; the `import_path` of Ray Serve names this function."""
    from ray import serve

    deployment = serve.deployment(
        serve.ingress()(Server),
        name=DEPLOYMENT,
        max_ongoing_requests=config.serve.max_queue,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=config.serve.timeout_s,
    )
    return deployment.bind(config)
