"""The model in MLflow: logged once, registered once, compared with the champion."""

import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shoal.registry.champion import Candidate, contest
from shoal.registry.client import patience_for
from shoal.registry.model_card import description, write_model_card
from shoal.registry.versions import COMPARISON, MOST_TAG, find_champion
from shoal.storage.folder import Folder
from shoal.storage.records import Verified
from shoal.storage.run_folder import MODEL, MODEL_CARD, RunFolder

READY = "READY"


class Publication:
    """Logs the saved model of a run and, once verified, registers it; publishing it again changes nothing.

    It is a list of steps of a call or two. A step that fails is the first of the next `publish`: a model is a dozen
    files, and on a server that fails a third of its calls no try would bring all of them.

    Attributes:
        run_id: of the run in MLflow.
    """

    def __init__(self, folder: RunFolder, experiment_id: str, run_id: str, runs_code: bool = False) -> None:
        """Set up, without a call.

        Args:
            runs_code: whether the run's own code may be called: its process publishes it.
        """
        self.run_id = run_id
        self._folder, self._experiment_id, self._runs_code = folder, experiment_id, runs_code
        self._steps = [self._find_or_create]
        identity = folder.identity()
        self._name = identity.registered_model_name
        self._verified = identity.verified
        if self._name and self._verified:
            self._steps += [self._create_registered_model, self._find_or_create_version, self._compare]
        self._client: Any = None
        self._model: Any = None
        self._version: Any = None
        self._may_be_linked = False  # whether an earlier call made the model an output of the run
        self._local = Path()
        self._card = ""

    def publish(self, client: Any, done: Callable[[], None] = lambda: None) -> None:
        """Do the steps that are left.

        Args:
            done: called after each step.
        """
        self._client = client
        with tempfile.TemporaryDirectory() as scratch:
            self._local = self._folder.get_folder(MODEL, Path(scratch) / "model")
            if self._card:  # what an object store holds was fetched anew
                self._write_card()
            while self._steps:
                self._steps[0]()
                del self._steps[0]
                done()

    def _find_or_create(self) -> None:
        """Find the run's logged model or create it; plan what it lacks."""
        client = self._client
        found = client.search_logged_models([self._experiment_id], f"source_run_id = '{self.run_id}'")
        found = sorted(found, key=lambda model: str(model.status) != READY)
        for other in found[1:]:  # created by a call whose answer was lost
            client.delete_logged_model(other.model_id)
        self._may_be_linked = bool(found)
        self._model = (
            found[0] if found else client.create_logged_model(self._experiment_id, "model", self.run_id)
        )
        if str(self._model.status) != READY:
            self._write_card()
            files = [path for path in sorted(self._local.rglob("*")) if path.is_file()]
            names = [path.relative_to(self._local).as_posix() for path in files]
            self._steps[1:1] = [self._link, *(partial(self._upload, name) for name in names), self._finish]

    def _write_card(self) -> None:
        """Write the model card among the files of a model that is registered."""
        if self._name and self._verified:
            self._card = write_model_card(self._folder, self._name, self._local)

    def _link(self) -> None:
        outputs = self._client.get_run(self.run_id).outputs if self._may_be_linked else None
        if outputs and any(output.model_id == self._model.model_id for output in outputs.model_outputs):
            return
        from mlflow.entities import LoggedModelOutput

        self._may_be_linked = True
        self._client.log_outputs(self.run_id, [LoggedModelOutput(self._model.model_id, step=0)])

    def _upload(self, name: str) -> None:
        path, (folder, _, _) = self._local / name, name.rpartition("/")
        if name == MODEL_CARD:
            self._complete_card()
        with patience_for(path.stat().st_size):
            self._client.log_model_artifact(self._model.model_id, str(path), folder or None)

    def _complete_card(self) -> None:
        from mlflow.models import Model

        card = Model.load(str(self._local))
        card.run_id, card.model_id = self.run_id, self._model.model_id
        card.artifact_path = self._model.artifact_location
        # On a disk this is the run's own model, which a kill in the middle must leave whole.
        Folder(str(self._local)).write(MODEL_CARD, card.to_yaml().encode())

    def _finish(self) -> None:
        self._client.finalize_logged_model(self._model.model_id, READY)

    def _create_registered_model(self) -> None:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            self._client.create_registered_model(self._name)

    def _find_or_create_version(self) -> None:
        client, model_id, verified = self._client, self._model.model_id, self._checked()
        found = client.search_model_versions(f"name='{self._name}' and run_id='{self.run_id}'")
        if found:
            self._version = found[0]
        else:
            if not self._card:
                self._write_card()
            tags = {"metric": verified.metric, "value": repr(verified.value), "data": verified.data}
            tags |= {"held_out": verified.held_out} if verified.held_out else {}
            self._version = client.create_model_version(
                self._name,
                f"models:/{model_id}",
                self.run_id,
                tags=tags,
                description=description(self._card),
                model_id=model_id,
            )
        self._folder.update_tracked(model_version=int(self._version.version))

    def _compare(self) -> None:
        version = self._version
        # A version without rows is of an earlier Shoal, which has compared it, unless the store is another one.
        is_comparable = "held_out" in version.tags or find_champion(self._client, version.name) is None
        if is_comparable and COMPARISON not in version.tags:
            candidate = Candidate(
                version.name, str(version.version), self._checked(), self._local, self._runs_code
            )
            self._steps.append(partial(self._record, contest(self._client, candidate)))

    def _record(self, text: str) -> None:
        version = self._version
        self._client.set_model_version_tag(version.name, version.version, COMPARISON, text[:MOST_TAG])
        self._folder.update_tracked(comparison=text)

    def _checked(self) -> Verified:
        assert self._verified is not None, "a model that is not verified is not registered"
        return self._verified
