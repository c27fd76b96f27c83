"""Models into a server: their names in routes, loaded into this process, behind a batcher."""

import re
from collections.abc import Sequence

from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.serving.batcher import Batcher
from shoal.serving.config import ServeSection
from shoal.serving.engine import LocalEngine
from shoal.serving.metrics import Metrics
from shoal.serving.models import Started, Version
from shoal.serving.signature import Signature


def load_here(uri: str, tracking_uri: str, trust_code: bool, scratch: str) -> Started:
    """Load a model into this process; its golden rows come out as recorded.

    Args:
        scratch: a folder that lasts as long as the model, which is downloaded into it.

    Raises:
        ModelError: it is not there, or is refused.
    """
    predictor = Predictor.load(resolve_model(uri, tracking_uri, scratch), trust_code=trust_code)
    return Started(Signature.of(predictor), predictor.digest, LocalEngine(predictor))


def version_of(uri: str, started: Started, section: ServeSection, metrics: Metrics) -> Version:
    """Return a model that answers, batch by batch."""
    batcher = Batcher(started.engine, section.max_batch_rows, section.max_queue, metrics.batch)
    return Version(uri, number_of(uri), started.digest, started.signature, batcher)


def number_of(uri: str) -> str:
    """Return the version in `models:/NAME/VERSION`; else the last part of a URI: the run."""
    return uri.rstrip("/").rpartition("/")[2]


def names_of(uris: Sequence[str]) -> list[str]:
    """Return a name for each model, by which routes call it: the registered name, or the run.

    Of several versions of one model each is called by version or alias too.
    """
    short = [_name_of(uri) for uri in uris]
    long = [re.sub(r"[/@]+", "-", uri.removeprefix("models:/").strip("/")) for uri in uris]
    names = [long[i] if short.count(name) > 1 else name for i, name in enumerate(short)]
    return [f"{name}-{i}" if name in names[:i] else name for i, name in enumerate(names)]


def _name_of(uri: str) -> str:
    if uri.startswith("models:/"):
        return re.split("[/@]", uri.removeprefix("models:/"))[0]
    return number_of(uri)
