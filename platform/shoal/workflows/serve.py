"""Trained models behind HTTP until a signal comes; what was served is recorded as a run of its own."""

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from shoal.config.schema import Section
from shoal.errors import ConfigError
from shoal.registry.model_uri import pinned_uri
from shoal.runs.job_result import JobResult, job_name, log_job_result, unused_folder
from shoal.serving.app import make_app
from shoal.serving.config import ServeSection
from shoal.serving.loading import load_here, names_of, version_of
from shoal.serving.metrics import Metrics
from shoal.serving.models import Models, ServedModel, Start, Started, Version
from shoal.serving.server import Server, listen, on_signals
from shoal.serving.shedding import Shedder
from shoal.serving.takeover import follow
from shoal.storage.records import Metadata, ServeResult
from shoal.tracking.config import StoreConfig


class ServeConfig(Section):
    experiment_name: str = Field("serving", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the result goes")
    trust_code: bool = Field(False, description="run the model's own code, which lies in the saved model")
    serve: ServeSection = Field(default_factory=ServeSection)
    track: StoreConfig = Field(default_factory=StoreConfig)


@dataclass(frozen=True)
class Served:
    """What a server did.

    Attributes:
        models: the last version of each, as URI, by name.
    """

    address: str
    models: dict[str, str]
    metrics: Metrics
    seconds: float


def check(uris: Sequence[str], config: ServeConfig) -> None:
    """Refuse settings that do not fit the models.

    Raises:
        ConfigError: the number of weights is not that of the models.
    """
    weights = config.serve.weights
    if weights is not None and len(weights) != len(uris):
        raise ConfigError(
            f"serve.weights={list(weights)} for {len(uris)} models: give a share for each, in their order"
        )


def serve(
    uris: Sequence[str], config: ServeConfig, tracking_uri: str, announce: Callable[[str, Models], None]
) -> Served:
    """Serve models until the process receives a signal.

    Args:
        uris: of the models.
        announce: called with the address and the models once requests are answered.

    Raises:
        ModelError: a model is not there, or does not load.
        ConfigError: the address cannot be opened, or settings do not fit the models.
    """
    check(uris, config)
    with listen(config.serve.host, config.serve.port) as listening, contextlib.ExitStack() as stack:
        start = _starter(config, tracking_uri, stack)
        return asyncio.run(_serve(uris, config, tracking_uri, start, listening, announce))


def _starter(config: ServeConfig, tracking_uri: str, stack: contextlib.ExitStack) -> Start:
    """Return what starts a model: in this process, or as replicas on a cluster."""
    if config.serve.replicas:
        from shoal.cluster.serving import ReplicaStarter

        replicas = ReplicaStarter(config.serve, tracking_uri, config.trust_code)
        stack.callback(replicas.close)
        return replicas
    scratch = stack.enter_context(tempfile.TemporaryDirectory())
    torch.set_num_threads(max(1, int(config.serve.cpus_per_replica)))

    async def start(uri: str) -> Started:
        return await asyncio.to_thread(load_here, uri, tracking_uri, config.trust_code, scratch)

    return start


async def _serve(
    uris: Sequence[str],
    config: ServeConfig,
    tracking_uri: str,
    start: Start,
    listening: socket.socket,
    announce: Callable[[str, Models], None],
) -> Served:
    stop = asyncio.Event()
    on_signals(stop)
    section, metrics = config.serve, Metrics()

    def locate(uri: str) -> str:
        return pinned_uri(uri, tracking_uri)

    async def load(uri: str) -> Version:
        return version_of(uri, await start(uri), section, metrics)

    loaded = [await load(locate(uri)) for uri in uris]
    models = Models(
        [ServedModel(*one) for one in zip(names_of(uris), uris, loaded, strict=True)], section.weights
    )
    followers = [
        asyncio.create_task(follow(model, locate, load, section.look_every_s, metrics))
        for model in models.by_name.values()
        if locate(model.uri) != model.uri
    ]
    # What a lost replica leaves behind waits in the queue, which is no overload.
    shedder = None if section.replicas else Shedder(models, metrics)
    server = Server(make_app(models, section, metrics), section.timeout_s, shedder)
    running = asyncio.create_task(server.serve([listening]))
    address, since = _address(listening), time.monotonic()
    announce(address, models)
    await asyncio.wait([running, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    server.stop()
    await running
    for follower in followers:
        follower.cancel()
    for version in models.identities.values():
        await version.batcher.engine.close()
    served = {name: version.uri for name, version in models.identities.items()}
    return Served(address, served, metrics, time.monotonic() - since)


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def log_served(served: Served, uris: Sequence[str], config: ServeConfig, tracking_uri: str) -> ServeResult:
    """Write a run folder with what was served and sync it to MLflow."""
    metrics = served.metrics
    statuses = {str(status): count for status, count in sorted(metrics.statuses.items())}
    latency = metrics.latency_ms()
    metadata = Metadata(
        params={"model": " ".join(uris), "serve.replicas": config.serve.replicas},
        tags={"shoal.job": "serve", "model": " ".join(uris)},
    )
    numbers = {
        "serve/requests": float(metrics.statuses.total()),
        "serve/failed": float(sum(count for status, count in metrics.statuses.items() if status >= 500)),
        "serve/rows": float(metrics.rows),
        **{f"serve/latency_{name}_ms": ms for name, ms in latency.items()},
    }
    result = {
        "address": served.address,
        "models": served.models,
        "requests": statuses,
        "rows": metrics.rows,
        "seconds": round(served.seconds, 3),
        "latency_ms": latency,
    }
    found = JobResult(config, metadata, numbers, {}, ServeResult, result)
    name = job_name("serve", next(iter(served.models)))
    folder = unused_folder(config.storage_path, config.experiment_name, name)
    return log_job_result(folder, found, config.experiment_name, tracking_uri)
