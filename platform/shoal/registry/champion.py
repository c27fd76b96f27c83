"""Which version of a registered model is its champion: the better one, measured on the same rows."""

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ModelError
from shoal.processes import start_answering
from shoal.storage.records import Verified
from shoal.tasks.metrics import is_better

CHAMPION = "champion"
LIKE = (
    "metric",
    "data",
    "held_out",
)  # tags of a version; its value is comparable where all of them are the same
COMPARISON = "comparison"  # the tag that says what was compared
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        candidate, champion: folders of weights and description.
        split: of the candidate's data, whose rows are measured.
        runs_code: whether this run's own code may be called: its builder, its function of data.
    """

    candidate: str
    champion: str
    split: str
    runs_code: bool


@dataclass(frozen=True)
class Measured:
    """What two models measure on the same rows, by the task's metric for comparisons."""

    rows: int
    candidate: float
    champion: float


@dataclass(frozen=True)
class Candidate:
    """A version that may become champion.

    Attributes:
        name: of the registered model.
        version: of it.
        verified: what its run measured.
        model: folder of the MLflow model.
        runs_code: as in `Request`.
    """

    name: str
    version: str
    verified: Verified
    model: Path
    runs_code: bool

    @property
    def tags(self) -> dict[str, str]:
        """What its value is a measurement of."""
        verified = self.verified
        return {"metric": verified.metric, "data": verified.data, "held_out": verified.held_out or ""}


def contest(client: Any, candidate: Candidate) -> str:
    """Make a version the champion if it is better than the present one on the same rows; return what was compared.

    A champion that was measured otherwise is measured again on the candidate's rows. One that cannot be stays.
    """
    champion = find_champion(client, candidate.name)
    about = f"{candidate.name} version {candidate.version}"
    if champion is None or str(champion.version) == candidate.version:
        client.set_registered_model_alias(candidate.name, CHAMPION, candidate.version)
        return f"{about} is the champion: there was none"
    other = f"version {champion.version}, the champion"
    try:
        measured, where = _measured(client, candidate, champion)
    except ModelError as error:
        return (
            f"{about} was not compared with {other}, which stays: {error}. To replace it, set the alias "
            f"'{CHAMPION}' by hand"
        )
    wins = is_better(candidate.verified.metric, measured.candidate, measured.champion)
    present = find_champion(client, candidate.name)
    if present is not None and present.version != champion.version:
        return contest(client, candidate)  # another run's version has become champion meanwhile
    if wins:
        client.set_registered_model_alias(candidate.name, CHAMPION, candidate.version)
    return (
        f"{about} {'becomes champion' if wins else 'does not become champion'}: {candidate.verified.metric} "
        f"{measured.candidate:.6g} against {measured.champion:.6g} of {other}, {where}"
    )


def find_champion(client: Any, name: str) -> Any:
    """Return the champion's version of a registered model, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _measured(client: Any, candidate: Candidate, champion: Any) -> tuple[Measured, str]:
    """Return what both measure on the same rows, and in words where these values come from.

    Raises:
        ModelError: the champion cannot be measured on the candidate's rows; the message says why.
    """
    if {key: champion.tags.get(key) for key in LIKE} == candidate.tags and candidate.tags["held_out"]:
        value = float(champion.tags["value"])
        return Measured(0, candidate.verified.value, value), "as its own run measured on the same rows"
    split = {"val": "validation"}.get(prefix := candidate.verified.metric.partition("/")[0], prefix)
    with tempfile.TemporaryDirectory() as scratch:
        model = download_version(candidate.name, str(champion.version), scratch)
        found = compare(
            Request(str(_weights(candidate.model)), str(_weights(model)), split, candidate.runs_code)
        )
    return found, f"both measured on the same {found.rows} {split} rows of this version's data"


def compare(request: Request) -> Measured:
    """Measure both models in a process of its own.

    Raises:
        ModelError: one of them cannot be measured on these rows; the message says why.
    """
    process, answers = start_answering(["-m", "shoal.registry.compare"], stderr=subprocess.PIPE)
    with process, answers:
        try:
            _, err = process.communicate(json.dumps(asdict(request)), timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ModelError(f"measuring it took more than {TIMEOUT_S:.0f} s") from None
        if process.returncode:
            raise ModelError((err.strip().splitlines() or ["no output"])[-1])
        answer = json.loads(answers.readline())
    if "problem" in answer:
        raise ModelError(answer["problem"])
    return Measured(**answer)


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


def _weights(model: Path) -> Path:
    """Return the folder of weights and description in an MLflow model that Shoal wrote."""
    data = model / "data"
    found = [path for path in data.iterdir() if path.is_dir()] if data.is_dir() else []
    if not found:
        raise ModelError("it is no model that Shoal wrote")
    return found[0]
