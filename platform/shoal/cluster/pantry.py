"""The data of a sweep's trials, read and transformed once for all that ask for the same. Knows no trials."""

import contextlib
import json
from collections.abc import Iterable

from shoal.cluster.config import RunConfig
from shoal.cluster.deal import Hands, deal
from shoal.cluster.plan import Plan, check_data
from shoal.cluster.sweep_plan import evaluations
from shoal.data.opening import recipe_of
from shoal.data.prepare import Prepared, check_batch
from shoal.errors import UserError


class Pantry:
    """Holds the data that was dealt, by what a config says of it."""

    def __init__(self) -> None:
        self._shelves: dict[str, tuple[Plan, Prepared, Hands]] = {}

    def stock(self, plan: Plan) -> Prepared:
        """Deal the data of a plan that was checked already."""
        prepared, hands = deal(plan, plan.config.scale.data_size)
        self._shelves[_shelf(plan.config)] = plan, prepared, hands
        return prepared

    def take(self, config: RunConfig) -> tuple[Plan, Prepared, Hands]:
        """Return the data a config asks for, dealing it if it is the first to.

        Raises:
            DataError: it cannot be trained on.
        """
        shelf = _shelf(config)
        if shelf not in self._shelves:
            self.stock(check_data(config))
        plan, prepared, hands = self._shelves[shelf]
        check_batch(config.data, prepared.rows)
        return plan, prepared, hands

    def steps(self, config: RunConfig) -> int:
        """Return the steps of an epoch."""
        plan, prepared, _ = self.take(config)
        return prepared.lanes(recipe_of(config.data, config.task, config.seed, plan.source)).steps

    def most_evaluations(self, configs: Iterable[RunConfig]) -> int:
        """Return how often the longest of some trials is evaluated."""
        found = [1]
        for config in configs:
            with contextlib.suppress(UserError):  # a corner that cannot be trained
                found.append(evaluations(config, self.steps(config)))
        return max(found)


def _shelf(config: RunConfig) -> str:
    data = config.data.model_dump()
    # One worker holds all rows, whatever the batch; several are dealt the lanes of a batch.
    if config.scale.data_size == 1:
        data.pop("global_batch_size")
    return json.dumps([data, config.task, config.scale.data_size], sort_keys=True)
