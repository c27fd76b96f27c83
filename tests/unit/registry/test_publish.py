"""A model on its way into MLflow, whose calls fail: each step is done once, and none anew."""

from collections import Counter
from types import SimpleNamespace

import pytest
from mlflow.models import Model

from shoal.registry.publish import READY, Publication
from shoal.storage.run_folder import MODEL, MODEL_CARD

FILES = ("MLmodel", "conda.yaml", "code/shoal.zip", "data/weights/model.safetensors")


class FailingClient:
    """An MLflow whose every call fails the first time."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(model_id="m-1", status="PENDING", artifact_location="somewhere")
        self.asked, self.done = Counter[str](), Counter[str]()

    def _call(self, name: str) -> None:
        self.asked[name] += 1
        if self.asked[name] == 1:
            raise ConnectionError(name)
        self.done[name] += 1

    def search_logged_models(self, experiment_ids, condition):
        self._call("search")
        return [self.model] if self.done["create"] else []

    def create_logged_model(self, experiment_id, name, run_id):
        self._call("create")
        return self.model

    def get_run(self, run_id):
        self._call("get")
        return SimpleNamespace(outputs=None)

    def log_outputs(self, run_id, outputs):
        self._call("link")

    def log_model_artifact(self, model_id, path, folder=None):
        self._call("/".join([*([folder] if folder else []), path.rpartition("/")[2]]))

    def finalize_logged_model(self, model_id, status):
        self._call("finish")
        self.model.status = status


@pytest.fixture
def folder(run):
    folder = run("run")
    for name in FILES:
        folder.write(f"{MODEL}/{name}", b"x")
    folder.write(f"{MODEL}/{MODEL_CARD}", Model().to_yaml().encode())
    return folder


def test_a_model_arrives_although_every_call_fails_once(folder):
    client, steps = FailingClient(), []
    publication = Publication(folder, "1", "run-1")
    tries = 0
    while True:
        before = len(steps)
        try:
            publication.publish(client, lambda: steps.append(1))
            break
        except ConnectionError:
            tries += 1
            assert tries < 20, client.asked
    assert before < len(steps)
    assert client.model.status == READY
    assert all(client.done[name] == 1 for name in (*FILES, "create", "finish")), client.done
    assert folder.read(f"{MODEL}/{MODEL_CARD}").decode().count("m-1") == 1


def test_a_model_that_is_there_is_not_sent_again(folder):
    client = FailingClient()
    client.model.status = READY
    client.asked.update(("search",))
    client.done["create"] = 1
    Publication(folder, "1", "run-1").publish(client)
    assert dict(client.asked) == {"search": 2}
