"""Checks before anything starts: config, data, model and machine fit together."""

import sys
from dataclasses import dataclass
from types import ModuleType

import torch

from shoal.config.import_path import find
from shoal.data.dataset_info import DatasetInfo, PreprocessingSpec, inspect_source
from shoal.data.sources.base import Source
from shoal.data.sources.open import is_function
from shoal.data.widen import input_dtype
from shoal.distributed.parallelism import check_strategy
from shoal.models.registry import build_model_for, find_builder
from shoal.models.size import ModelSize, measure_size
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.config import RunConfig
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.machine import Connect, check_cluster, check_local, cluster_address
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.tracking.config import TrackConfig


@dataclass(frozen=True)
class RunPlan:
    """A config that was checked against its data, its model and this machine; nothing is started yet."""

    config: RunConfig
    source: Source
    preprocessing: PreprocessingSpec
    dataset_info: DatasetInfo | None  # None: the data is too large to look at before there is a cluster
    size: ModelSize | None


def check_tracking(track: TrackConfig) -> None:
    """Refuse a tracking URI at which nothing can be recorded; every job calls it before it starts anything.

    Raises:
        ConfigError: with the rule that it breaks.
    """
    check_tracking_uri(resolve_tracking_uri(track))


def validate(config: RunConfig, connect: Connect) -> RunPlan:
    """Check all that can be checked before anything is started.

    Args:
        connect: called before a user's function that uses Ray, which would start Ray with other settings.

    Raises:
        UserError: the first rule that is broken.
    """
    address = cluster_address()
    check_local(config.scale, address)
    if config.scale.num_workers and address is not None:
        check_cluster(address)
    find_builder(config.model.name)
    if config.scale.num_workers and _uses_ray(config.data.source):
        connect(config.scale, 1)
    source = open_data(config.data, config.task, config.seed)
    preprocessing = preprocessing_spec(config.data, config.task, config.seed, source)
    if config.scale.num_workers and not source.is_small:
        return RunPlan(config, source, preprocessing, None, None)
    dataset_info = inspect_source(source, preprocessing)
    return RunPlan(config, source, preprocessing, dataset_info, measure_model(config, dataset_info))


def validate_data(config: RunConfig) -> RunPlan:
    """Check the data of a config alone: those of a trial whose data differ from the others'.

    Raises:
        DataError: the first rule that is broken.
    """
    source = open_data(config.data, config.task, config.seed)
    preprocessing = preprocessing_spec(config.data, config.task, config.seed, source)
    return RunPlan(
        config,
        source,
        preprocessing,
        inspect_source(source, preprocessing) if source.is_small else None,
        None,
    )


def measure_model(config: RunConfig, dataset_info: DatasetInfo) -> ModelSize:
    """Build the model once, here, and return its size.

    Raises:
        ModelError: it cannot be built, does not take such rows, or cannot be divided as `scale.strategy` says.
    """
    transform = dataset_info.transform
    sample = torch.zeros((1, *transform.input_shape), dtype=input_dtype(transform))
    model = build_model_for(config.model, transform, config.task, config.seed)
    check_strategy(model, config.scale)
    return measure_size(model, sample)


def _uses_ray(uri: str) -> bool:
    """Whether a source is a user's function whose module imports Ray."""
    if not is_function(uri):
        return False
    function = find(uri.partition("?")[0], "data.source")
    names = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    modules = (getattr(value, "__name__", "") for value in names.values() if isinstance(value, ModuleType))
    return any(name.partition(".")[0] == "ray" for name in modules)
