"""Models as Ray Serve replicas, which answer the batches of an HTTP server in this process.

The server stays here, and Serve's own proxies are not started: a batch of any number of requests costs one call, limits
of bodies and times hold before Ray sees a byte, and a batch whose replica dies is answered by another.
Depends on `serving`.
"""

import asyncio
import itertools
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from shoal.cluster.session import connect, disconnect
from shoal.data.sources.base import Block
from shoal.errors import ConfigError, ModelError
from shoal.inference.predictor import Answers, Predictor
from shoal.registry.model_uri import resolve_model
from shoal.runs.config import ScaleConfig
from shoal.serving.config import ServeSection
from shoal.serving.engine import LocalEngine, Params
from shoal.serving.models import Started
from shoal.serving.signature import Signature

LOOK_EVERY_S = 0.2
START_S = 300.0  # for replicas to load a model
STUCK_S = 120.0  # of one batch, after which a replica is replaced
TRIES = 2


class Replica:
    """A model in a process of Ray Serve; its threads are its CPUs."""

    def __init__(self, uri: str, tracking_uri: str, trust_code: bool, cpus: float) -> None:
        """Load the model, from where every node finds it; its golden rows come out as recorded, or it is refused."""
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        self._scratch = tempfile.TemporaryDirectory()  # the model's own code is imported from there
        predictor = Predictor.load(
            resolve_model(uri, tracking_uri, self._scratch.name), trust_code=trust_code
        )
        self._engine = LocalEngine(predictor)
        self._since_s: float | None = None

    async def predict(self, block: Block, params: Params) -> Answers:
        """Answer a batch."""
        self._since_s = time.monotonic()
        try:
            return await self._engine.predict(block, params)
        finally:
            self._since_s = None

    async def stream(self, text: str, params: Params) -> AsyncIterator[str]:
        """Continue a text."""
        async for piece in self._engine.stream(text, params):
            yield piece

    def check_health(self) -> None:
        """Raise where a batch hangs: Ray Serve replaces the replica.

        Raises:
            RuntimeError: a batch takes too long.
        """
        if self._since_s is not None and time.monotonic() - self._since_s > STUCK_S:
            raise RuntimeError(f"a batch takes longer than {STUCK_S:g} s")


class ReplicaEngine:
    """The replicas of one version. A batch whose replica dies is answered by another, once: it has no side effects."""

    def __init__(self, handle: Any, end: Callable[[], None], lanes: int) -> None:
        self._handle, self._end, self.lanes = handle, end, lanes

    async def predict(self, block: Block, params: Params) -> Answers:
        from ray.exceptions import RayActorError, RayTaskError

        for attempt in range(TRIES):
            try:
                answers: Answers = await self._handle.predict.remote(block, dict(params))
                return answers
            except RayTaskError as error:
                raise error.cause from None  # as the model raised it
            except RayActorError:
                if attempt + 1 == TRIES:
                    raise
        raise AssertionError

    async def stream(self, text: str, params: Params) -> AsyncIterator[str]:
        """Continue a text; once some of it was sent it cannot be begun again elsewhere."""
        from ray.exceptions import RayActorError

        is_begun = False
        for attempt in range(TRIES):
            try:
                async for piece in self._handle.options(stream=True).stream.remote(text, dict(params)):
                    is_begun = True
                    yield piece
                return
            except RayActorError:
                if is_begun or attempt + 1 == TRIES:
                    raise

    async def close(self) -> None:
        """End the replicas, which answer nothing any more."""
        await asyncio.to_thread(self._end)


class ReplicaStarter:
    """Starts the replicas of versions, one application of Ray Serve for each."""

    def __init__(self, section: ServeSection, tracking_uri: str, trust_code: bool) -> None:
        self._section, self._tracking_uri, self._trust_code = section, tracking_uri, trust_code
        self._is_open = False
        self._running: set[str] = set()
        self._numbers = itertools.count()

    def _open(self) -> None:
        """Join or start a cluster that holds the replicas, and those of a version that takes over."""
        from ray import serve

        section = self._section
        scale = ScaleConfig(
            num_workers=section.replicas, use_gpu=False, cpus_per_worker=section.cpus_per_replica
        )
        surge = max(1, round(section.replicas * section.cpus_per_replica))
        try:
            connect(scale, surge)
        except ConfigError as error:
            words = str(error).replace("scale.num_workers", "serve.replicas")
            raise ConfigError(words.replace("scale.cpus_per_worker", "serve.cpus_per_replica")) from None
        self._is_open = True
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False}
        )

    def close(self) -> None:
        """End what was started, and leave the cluster; other applications of Ray Serve go on."""
        for name in list(self._running):
            self._end(name)
        if self._is_open:
            disconnect()

    def _end(self, name: str) -> None:
        from ray import serve

        if name in self._running:
            self._running.remove(name)
            serve.delete(name)

    async def __call__(self, uri: str) -> Started:
        """Start the replicas of a version, and wait until each has loaded it.

        Raises:
            ModelError: the model is refused, or its replicas do not start.
            ConfigError: the cluster is too small.
        """
        signature, digest = await asyncio.to_thread(self._read, uri)
        if not self._is_open:
            self._open()
        name = f"shoal-{os.getpid()}-{next(self._numbers)}"
        self._running.add(name)
        try:
            handle = await asyncio.to_thread(self._deploy, uri, name)
            await _wait_until_running(name, uri)
        except BaseException:
            self._end(name)
            raise
        return Started(signature, digest, ReplicaEngine(handle, partial(self._end, name), self._lanes))

    @property
    def _lanes(self) -> int:
        """A batch at a time for each replica that there may be."""
        return max(self._section.replicas, self._section.max_replicas or 0)

    def _read(self, uri: str) -> tuple[Signature, str]:
        """Load the model here first: a refusal has one clear message, and comes before anything is started."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = resolve_model(uri, self._tracking_uri, scratch)
            predictor = Predictor.load(folder, trust_code=self._trust_code)
            return Signature.of(predictor), predictor.digest

    def _deploy(self, uri: str, name: str) -> Any:
        from ray import serve

        section = self._section
        most = self._lanes
        scaling: dict[str, Any] = {"num_replicas": section.replicas}
        if most > section.replicas:
            # Requests reach Serve as batches, one of each lane: more than one to a replica calls for another.
            counts = {"min_replicas": section.replicas, "max_replicas": most, "target_ongoing_requests": 1}
            scaling = {"autoscaling_config": counts}
        deployment = serve.deployment(
            Replica,
            name="model",
            max_ongoing_requests=max(2, most),
            ray_actor_options={
                "num_cpus": section.cpus_per_replica,
                "runtime_env": {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
            },
            health_check_period_s=2,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=section.timeout_s,
            max_constructor_retry_count=2,
            **scaling,
        )
        bound = deployment.bind(uri, self._tracking_uri, self._trust_code, section.cpus_per_replica)
        (handle,) = serve.run_many(
            [serve.RunTarget(bound, name=name, route_prefix=None)], wait_for_applications_running=False
        )
        return handle


async def _wait_until_running(name: str, uri: str) -> None:
    from ray import serve

    until = time.monotonic() + START_S
    while time.monotonic() < until:
        state = (await asyncio.to_thread(serve.status)).applications.get(name)
        if state is not None and state.status == "RUNNING":
            return
        if state is not None and state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            said = " ".join([one.message for one in state.deployments.values()] or [state.message])
            raise ModelError(f"the replicas of '{uri}' do not start: {' '.join(said.split())[-600:]}")
        await asyncio.sleep(LOOK_EVERY_S)
    raise ModelError(
        f"the replicas of '{uri}' did not start within {START_S:g} s: give the cluster more CPUs, or lower "
        "serve.replicas or serve.cpus_per_replica"
    )
