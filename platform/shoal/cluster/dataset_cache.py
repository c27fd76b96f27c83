"""The data sets of a sweep, each read and transformed once for all trials with the same data config.

It does not know trials, only how many will need which data: what none needs any more is freed.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.cluster.shard_store import ShardRefs, put_shards
from shoal.data.dataset_info import DatasetInfo, check_batch
from shoal.errors import UserError
from shoal.runs.config import RunConfig
from shoal.runs.validate import RunPlan, validate_data
from shoal.tasks.open_data import preprocessing_spec
from shoal.tune.config import SweepConfig
from shoal.tune.keys import typed_point
from shoal.tune.space.domains import Point
from shoal.tune.validate import evaluations

SECTION = "data."


@dataclass(frozen=True)
class CachedDataset:
    """A data set with its rows in Ray's object store.

    Attributes:
        plan: of the first run that asked for it.
        shard_refs: by the number of parts, of which trials with a range of workers need several.
    """

    plan: RunPlan
    info: DatasetInfo
    shard_refs: Mapping[int, ShardRefs]


class DatasetCache:
    """Data sets by the part of a config that determines their rows."""

    def __init__(self, config: SweepConfig) -> None:
        self._entries: dict[str, CachedDataset] = {}
        self._base = config.trial({})
        self._needed: Counter[str] = Counter()  # trials that have not ended, by the key of their data

    def __len__(self) -> int:
        return len(self._entries)

    def expect(self, point: Point) -> None:
        """Note that a trial at a point will need its data until `release`."""
        self._needed[self._point_key(point)] += 1

    def release(self, point: Point, best: Point | None, knows_all: bool) -> None:
        """Note that a trial has ended; data that no trial needs any more are freed.

        Args:
            best: the best trial's point, whose model is packaged with its data.
            knows_all: whether all trials are expected; else the next one may need any data.
        """
        self._needed[self._point_key(point)] -= 1
        if not knows_all:
            return
        kept = self._point_key(best) if best is not None else None
        for key in [key for key in self._entries if key != kept and self._needed[key] <= 0]:
            del self._entries[key]

    def _point_key(self, point: Point) -> str:
        values = {key: value for key, value in typed_point(point).items() if key.startswith(SECTION)}
        data = self._base.data.model_dump() | {
            key.removeprefix(SECTION): value for key, value in values.items()
        }
        return _data_key(data, self._base.task, self._base.scale.data_size)

    def put(self, plan: RunPlan) -> DatasetInfo:
        """Put the rows of a validated plan into the object store, divided among its workers."""
        scale = plan.config.scale
        put = {parts: put_shards(plan, parts) for parts in map(scale.parts, scale.sizes)}
        dataset_info, _ = put[scale.data_size]
        self._keep(CachedDataset(plan, dataset_info, {parts: refs for parts, (_, refs) in put.items()}))
        return dataset_info

    def _keep(self, cached: CachedDataset) -> None:
        self._entries[_cache_key(cached.plan.config)] = cached

    def get(self, config: RunConfig) -> CachedDataset:
        """Return the data set of a config; the first call for it reads and puts it.

        Raises:
            DataError: it cannot be trained on.
        """
        key = _cache_key(config)
        if key not in self._entries:
            self.put(validate_data(config))
        cached = self._entries[key]
        check_batch(config.data, cached.info.rows)
        return cached

    def steps_per_epoch(self, config: RunConfig) -> int:
        """Return the optimizer steps of an epoch."""
        cached = self.get(config)
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, cached.plan.source)
        return cached.info.lanes(preprocessing).steps

    def most_evaluations(self, configs: Iterable[RunConfig]) -> int:
        """Return the number of evaluations of the longest of some trials."""
        counts = [1]
        for config in configs:
            with contextlib.suppress(UserError):  # a corner that cannot be trained
                counts.append(evaluations(config, self.steps_per_epoch(config)))
        return max(counts)


def _cache_key(config: RunConfig) -> str:
    return _data_key(config.data.model_dump(), config.task, config.scale.data_size)


def _data_key(data: dict[str, Any], task: str, parts: int) -> str:
    # One worker holds all rows, whatever the batch size; for several the rows are divided by lanes of a batch.
    left_out = {"global_batch_size"} if parts == 1 else set()
    kept = {key: value for key, value in data.items() if key not in left_out}
    return json.dumps([kept, task, parts], sort_keys=True)
