"""Shared by the tests of a server: real models, fitted to rows and not trained, behind real uvicorn."""

import asyncio
import http.client
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shoal.data.dataset_info import inspect_source
from shoal.data.sources.function import source_from_value
from shoal.data.tokenizer import make_tokenizer
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.inference.predictor import Predictor
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model_for
from shoal.serving.app import make_app
from shoal.serving.batcher import Batcher
from shoal.serving.config import ServeSection
from shoal.serving.engine import LocalEngine
from shoal.serving.metrics import Metrics
from shoal.serving.models import Models, ServedModel, Version
from shoal.serving.server import Server, listen
from shoal.serving.shedding import Shedder
from shoal.serving.signature import Signature


class Client:
    """Requests to a server, one connection each."""

    def __init__(self, port):
        self.port = port
        self.address = f"http://127.0.0.1:{port}"

    def send(self, method, path, body=None, timeout=60, **headers):
        """Return status, answer and headers; the answer is read as JSON where it is some."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
                body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers, encode_chunked=hasattr(body, "__next__"))
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text.decode(), answer.headers
        finally:
            connection.close()

    def post(self, path, body, **headers):
        return self.send("POST", path, body, **headers)

    def get(self, path, **headers):
        return self.send("GET", path, **headers)


def version_of(predictor, section=None, metrics=None, number="1", engine=None):
    section = section or ServeSection()
    batcher = Batcher(engine or LocalEngine(predictor), section.max_batch_rows, section.max_queue)
    if metrics:
        batcher.measured = metrics.batch
    return Version(f"models:/m/{number}", number, "0123456789ab", Signature.of(predictor), batcher)


@contextmanager
def running(versions, section=None):
    """Run a server of {name: Version} in a thread; yields a client, whose `models` and `loop` a test may use."""
    section, metrics = section or ServeSection(), Metrics()
    served = [ServedModel(name, version.uri, version) for name, version in versions.items()]
    models = Models(served, section.weights)
    listening = listen("127.0.0.1", 0)
    shedder = Shedder(models, metrics)
    server = Server(make_app(models, section, metrics), 1, shedder)
    loops = []

    async def main():
        loops.append(asyncio.get_running_loop())
        await server.serve([listening])

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    client = Client(listening.getsockname()[1])
    client.models, client.metrics, client.shedder = models, metrics, shedder
    try:
        client.get("/health")
        client.loop = loops[0]
        yield client
    finally:
        server.stop()
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def load(folder, source_block, spec, task="classification", model=None):
    """Return a loaded model, fitted to a block of rows."""
    info = inspect_source(source_from_value("mine:rows", source_block), spec)
    config = model or ModelConfig(width=16)
    torch.manual_seed(0)
    module = build_model_for(config, info.transform, task, 3).eval()
    save_file(module.state_dict(), folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(describe_model(config, info.transform, task, spec.data, spec.seed))
    return Predictor.load(folder)


@pytest.fixture
def table(preprocessing, rows, tmp_path):
    """A model of the table `rows`: two numbers and a category."""
    return load(tmp_path, rows, preprocessing())


@pytest.fixture
def arrays(preprocessing, tmp_path):
    """A model of one column of arrays, 4 by 4."""
    block = {"image": np.random.default_rng(0).random((60, 4, 4)), "target": np.arange(60) % 3}
    return load(tmp_path, block, preprocessing())


@pytest.fixture
def writer(tmp_path):
    """A language model over bytes, with random weights."""
    from shoal.data.config import DataConfig
    from shoal.data.labels import Label
    from shoal.data.preprocessing import Column, Transform

    column = Column(name="tokens", kind="ready", shape=(17,), dtype="uint16")
    transform = Transform(
        columns=(column,), label=Label(name=""), tokenizer=make_tokenizer("byte", ()).to_json()
    )
    config = ModelConfig(name="gpt", width=32, depth=1, args={"tied": False})
    torch.manual_seed(0)
    module = build_model_for(config, transform, "causal_lm", 3).eval()
    save_file(module.state_dict(), tmp_path / WEIGHTS)
    described = describe_model(config, transform, "causal_lm", DataConfig(source="text:none.txt"), 0)
    (tmp_path / DESCRIPTION).write_text(described)
    return Predictor.load(tmp_path)


@pytest.fixture
def serving():
    """Return what starts servers: `with serving(table, max_queue=1) as client`."""

    def start(*predictors, engine=None, **section):
        chosen = ServeSection(**section)
        names = ["m", "other", "third"]
        versions = {
            name: version_of(predictor, chosen, number=str(number + 1), engine=engine)
            for number, (name, predictor) in enumerate(zip(names, predictors, strict=False))
        }
        return running(versions, chosen)

    return start
