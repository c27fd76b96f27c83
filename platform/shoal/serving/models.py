"""The models of a server: which version of each answers, and which model answers where a request names none."""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shoal.errors import nearest
from shoal.serving.batcher import Batcher
from shoal.serving.engine import Engine
from shoal.serving.errors import RequestError
from shoal.serving.signature import Signature


@dataclass(frozen=True)
class Version:
    """A model that answers.

    Attributes:
        uri: where it was loaded from.
        number: of a registered model; else the name of its run, or the run's ID.
        digest: of its files; empty for a model that was saved without.
    """

    uri: str
    number: str
    digest: str
    signature: Signature
    batcher: Batcher


@dataclass(frozen=True)
class Started:
    """A model that is loaded and has answered its golden rows as recorded."""

    signature: Signature
    digest: str
    engine: Engine


Start = Callable[[str], Awaitable[Started]]  # from the URI of a version


@dataclass
class ServedModel:
    """A model by the name that routes use.

    Attributes:
        uri: as it was asked for, perhaps an alias.
        current: takes all new requests; a request goes on with the version that it began with.
    """

    name: str
    uri: str
    current: Version


class Models:
    """The models of a server, by name."""

    def __init__(self, models: Sequence[ServedModel], weights: Sequence[float] | None = None) -> None:
        """Take at least one model.

        Args:
            weights: shares of the requests that name no model; None: the first answers all of them.
        """
        self.by_name = {model.name: model for model in models}
        self._turns = _turns(models, weights or [1.0] + [0.0] * (len(models) - 1))

    @property
    def first(self) -> ServedModel:
        return next(iter(self.by_name.values()))

    def find(self, name: str | None) -> ServedModel:
        """Return a model by name; without one, the model whose turn it is.

        Raises:
            RequestError: 404, there is no such model.
        """
        if name is None:
            return next(self._turns)
        if name not in self.by_name:
            raise RequestError(
                404,
                f"there is no model '{name}'{nearest(name, self.by_name)}: this server has {', '.join(self.by_name)}",
            )
        return self.by_name[name]

    def check_version(self, model: ServedModel, number: str | None) -> None:
        """Refuse a version that does not answer.

        Raises:
            RequestError: 404.
        """
        if number is not None and number != model.current.number:
            raise RequestError(
                404,
                f"model '{model.name}' has no version '{number}' here: it answers with {model.current.number}",
            )

    @property
    def identities(self) -> Mapping[str, Version]:
        return {name: model.current for name, model in self.by_name.items()}


def _turns(models: Sequence[ServedModel], weights: Sequence[float]) -> Iterator[ServedModel]:
    """Yield models in proportion to weights, each as evenly as can be: any 10 requests of [9, 1] split 9 to 1."""
    total = sum(weights)
    credit = [0.0] * len(models)
    for _ in itertools.count():
        credit = [have + weight / total for have, weight in zip(credit, weights, strict=True)]
        turn = max(range(len(models)), key=credit.__getitem__)
        credit[turn] -= 1.0
        yield models[turn]
