"""Versions of a registered model in MLflow: found, checked, downloaded."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.errors import ModelError, nearest
from shoal.registry.client import connect
from shoal.registry.ledger import CHAMPION, make_champion, read_ledger
from shoal.registry.model_card import COMPARED, PAGE, README, description, with_section, write_pages
from shoal.storage.records import LedgerEntry

COMPARISON, MOST_TAG = "comparison", 5000  # the tag that says what was compared, and its most characters


class Versions:
    """The versions of one registered model.

    Attributes:
        name: of the registered model.
    """

    def __init__(self, name: str, tracking_uri: str) -> None:
        """Look the model up.

        Raises:
            ModelError: there is no such model, or MLflow does not answer; as all methods do.
        """
        self.name, self.tracking_uri = name, tracking_uri
        path = tracking_uri.removeprefix("sqlite:///")
        if path != tracking_uri and not Path(path).exists():
            raise ModelError(
                f"model '{name}' is not known: there is no MLflow store at {tracking_uri}: set track.tracking_uri"
            )
        with self._asking():
            self._client = connect(tracking_uri)
            is_known = find_model(self._client, name) is not None
            names = [] if is_known else [model.name for model in self._client.search_registered_models()]
            found = self._client.search_model_versions(f"name='{name}'") if is_known else []
        if not is_known:
            raise ModelError(
                f"no model '{name}' is registered in MLflow at {tracking_uri}{nearest(name, names)}: train one with "
                "track.registered_model_name=NAME, or set track.tracking_uri"
            )
        self._by_number = {str(version.version): version for version in found}

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except ModelError:
            raise
        except Exception as error:  # whatever MLflow and its transport raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"MLflow at {self.tracking_uri} does not answer for model '{self.name}' ({reason}): start it, or set "
                "track.tracking_uri"
            ) from error

    def get(self, version: str) -> Any:
        """Return a version as it was when this object was made; None if it is not there."""
        return self._by_number.get(version)

    @property
    def champion(self) -> str:
        """The champion's version, asked now; ModelError: there is none."""
        with self._asking():
            found = find_champion(self._client, self.name)
        if found is None:
            raise ModelError(
                f"model '{self.name}' has no champion yet: a training registers one, or set the alias '{CHAMPION}' by "
                "hand"
            )
        return str(found.version)

    def candidate(self, version: str | None, champion: str) -> Any:
        """Return a version that may be compared with the champion.

        Args:
            version: None: the newest one.

        Raises:
            ModelError: there is no such version, it is the champion, or it was never verified.
        """
        numbers = sorted(self._by_number, key=int)
        version = version or (numbers[-1] if numbers else None)
        if version is None or version not in self._by_number:
            known = ", ".join(numbers[-10:]) or "none"
            raise ModelError(f"model '{self.name}' has no version {version}: the last versions are {known}")
        if version == champion:
            raise ModelError(
                f"version {version} of '{self.name}' is its champion: name another one with --candidate VERSION"
            )
        found = self._by_number[version]
        if not {"metric", "value", "data"} <= set(found.tags):
            raise ModelError(
                f"version {version} of '{self.name}' is not verified: no clean process reproduced its metric. Register "
                "it by a training with track.registered_model_name"
            )
        return found

    def weights(self, version: str, scratch: str) -> Path:
        """Return a local folder of a version's weights and description, which lies in its MLflow model."""
        try:
            return weights_of(download_version(self.name, version, tempfile.mkdtemp(dir=scratch)))
        except ModelError as error:
            raise ModelError(f"version {version} of '{self.name}': {error}") from error

    def ledger(self) -> list[LedgerEntry]:
        """Return who became champion, oldest first."""
        with self._asking():
            return read_ledger(self._client, self.name)

    def check_champion(self, expected: str) -> None:
        """Refuse to go on where another process has moved the alias: MLflow moves it whatever it was.

        Raises:
            ModelError: it is another version's.
        """
        found = self.champion
        if found != expected:
            raise ModelError(
                f"another process made version {found} of '{self.name}' champion, where version {expected} was "
                "expected: run the same command again"
            )

    def make_champion(self, entry: LedgerEntry) -> None:
        """Write an entry into the ledger and move the alias.

        Raises:
            ModelError: another process moves it at the same time.
        """
        self.check_champion(str(entry.replaced))
        with self._asking():
            make_champion(self._client, self.name, entry)
        self.check_champion(entry.champion)

    def record_comparison(self, version: str, text: str, section: str) -> None:
        """Say in a version's tag and in its model card what it was compared with.

        Args:
            section: of the card, in Markdown.
        """
        found = self._by_number[version]
        with self._asking(), tempfile.TemporaryDirectory(prefix="shoal-card-") as scratch:
            self._client.set_model_version_tag(self.name, version, COMPARISON, text[:MOST_TAG])
            model = download_version(self.name, version, scratch)
            if not (model / README).is_file():
                return  # an earlier version of Shoal registered it
            card = with_section((model / README).read_text(), COMPARED, section)
            write_pages(model, card)
            for name in (README, PAGE):
                self._client.log_model_artifact(found.source.removeprefix("models:/"), str(model / name))
            self._client.update_model_version(self.name, version, description(card))


def find_model(client: Any, name: str) -> Any:
    """Return a registered model, or None."""
    return _found(lambda: client.get_registered_model(name))


def find_champion(client: Any, name: str) -> Any:
    """Return the champion's version of a registered model, or None."""
    return _found(lambda: client.get_model_version_by_alias(name, CHAMPION))


def _found(get: Callable[[], Any]) -> Any:
    """Return what MLflow has, or None where it has no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return get()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def download_version(name: str, version: str, scratch: str) -> Path:
    """Return the local folder of a version's MLflow model.

    Raises:
        ModelError: its files are not there.
    """
    import mlflow

    try:
        found = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=scratch)
    except Exception as error:  # whatever the store of the artifacts raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"its files cannot be read ({reason})") from error
    return Path(found)


def weights_of(model: Path) -> Path:
    """Return the folder of weights and description in an MLflow model that Shoal wrote.

    Raises:
        ModelError: another program wrote it.
    """
    data = model / "data"
    found = [path for path in data.iterdir() if path.is_dir()] if data.is_dir() else []
    if not found:
        raise ModelError("it is no model that Shoal wrote")
    return found[0]
