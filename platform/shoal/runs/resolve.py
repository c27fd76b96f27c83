"""Resolves the folder of a run: new, continued, or refused."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from shoal.config.objects import plain_name
from shoal.config.schema import assign, build_config, fields, flatten
from shoal.config.secrets import hide
from shoal.errors import ConfigError, StorageError
from shoal.runs.config import RunConfig
from shoal.runs.locations import storage_uri
from shoal.storage.folder import Folder
from shoal.storage.records import Identity, Result
from shoal.storage.run_folder import CONFIG, RunFolder

AnyResult = TypeVar("AnyResult", bound=Result)
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)

# Keys that earlier versions did not have, with what they did.
BEFORE: dict[str, Any] = {
    "checkpoint.every_s": None,
    "checkpoint.mtbf_s": None,
    "data.arrays": {},
    "data.collate": "standard",
    "data.columns": {},
    "data.compose": None,
    "data.decimal": None,
    "data.delimiter": None,
    "data.drop": (),
    "data.encoding": None,
    "data.features": None,
    "data.group_by_length": False,
    "data.header": None,
    "data.mask_bands": 0,
    "data.mask_frames": 0,
    "data.missing": None,
    "data.on_bad": "stop",
    "data.sample_rate": None,
    "data.weight": None,
    "model.freeze": [],
    "optim.args": {},
    "optim.decay": "all",
    "optim.groups": {},
    "scale.accelerator": "auto",
    "scale.sync_batchnorm": False,
    "train.callbacks": [],
    "train.class_weight": None,
    "train.early_stopping.metric": "val/loss",
    "train.early_stopping.min_delta": 0.0,
    "train.early_stopping.patience": None,
    "train.evaluate_precision": "fp32",
    "train.loss": None,
    "train.metrics": (),
    "train.select": "last",
    "tune.lag": 8,
}

logger = logging.getLogger(__name__)


def resolve_run_folder(
    config: RunConfig,
    is_done: Callable[[RunFolder], bool] = lambda folder: bool(finished_result(folder, Result)),
) -> RunFolder:
    """Return the folder that this run continues or begins, after the checks of `if_exists`; nothing is created.

    Args:
        is_done: whether a folder holds all that the config asks for.

    Raises:
        UserError: the name is taken, in use, or holds a run of another config.
    """
    folder = _choose_folder(config, is_done)
    folder.check_free()
    return folder


def _choose_folder(config: RunConfig, is_done: Callable[[RunFolder], bool]) -> RunFolder:
    storage = Folder(f"{storage_uri(config)}/{config.experiment_name}")
    if storage.is_local:
        _check_writable(storage)
    if config.run_name is None:
        return _unnamed_folder(config, storage, is_done)
    folder = RunFolder(f"{storage.uri}/{config.run_name}")
    if not folder.exists(Identity.file):
        return folder
    if config.if_exists == "fail":
        raise ConfigError(
            f"run_name='{config.run_name}' exists in '{storage.uri}' and if_exists=fail: choose another "
            "run_name, or set if_exists=resume or new"
        )
    if config.if_exists == "new":
        return _numbered_folder(storage, config.run_name)
    folder.identity()  # damage is reported before anything starts
    _check_same_config(config, folder)
    return folder


def as_begun(config: AnyConfig, folder: RunFolder) -> AnyConfig:
    """Return a config as a run goes on with it: keys that are newer than the run have the value they stood for then."""
    if not folder.exists(CONFIG):
        return config
    now = flatten(config)
    missing = _missing_keys(_stored_config(folder), now)
    changed = {key: value for key, value in missing.items() if now[key] != value}
    if not changed:
        return config
    kept = ", ".join(f"{key}={value}" for key, value in changed.items())
    logger.warning("'%s' was begun by an earlier version: it goes on as there, with %s", folder.uri, kept)
    return config.replace(changed)


def _missing_keys(tree: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the former values of keys that a stored config is too old to have; `now` has all keys of its kind."""
    missing = {}
    for key in BEFORE.keys() & now.keys():
        if not _has_key(tree, key):
            missing[key] = BEFORE[key]
    return missing


def _has_key(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a nested mapping has a dotted key."""
    section, _, rest = key.partition(".")
    inner = tree.get(section)
    return _has_key(inner, rest) if rest and isinstance(inner, Mapping) else not rest and section in tree


def finished_result(folder: RunFolder, kind: type[AnyResult]) -> AnyResult | None:
    """Return the result of a run that has finished, or None."""
    result = folder.load(kind)
    return result if result and result.status == "FINISHED" else None


def _check_same_config(config: RunConfig, folder: RunFolder) -> None:
    """Refuse to continue a run that another config began; keys that only earlier versions had do not count."""
    kind, tree = type(config), _stored_config(folder)
    if not tree.keys() <= kind.model_fields.keys():
        raise ConfigError(
            f"run_name='{config.run_name}' is of another kind of job (a run, or a sweep): choose another run_name"
        )
    known = _known_keys(kind, tree)
    now = flatten(config)
    for key in _missing_keys(tree, now):
        assign(known, key, now[key])
    try:
        earlier = flatten(build_config(kind, hide(known)))
    except ConfigError as error:
        raise ConfigError(
            f"run_name='{config.run_name}' was begun with a config that this version refuses ({error}): choose "
            "another run_name, or set if_exists=new"
        ) from None
    changed = [
        f"{key}: {earlier[key]} then, {now[key]} now"
        for key in now
        if earlier[key] != now[key] and not key.startswith(kind.free_on_resume)
    ]
    if changed:
        raise ConfigError(
            f"run_name='{config.run_name}' was begun with another config ({'; '.join(changed)}): resume with the "
            "same, choose another run_name, or set if_exists=new"
        )


def _stored_config(folder: RunFolder) -> dict[str, Any]:
    """Return the config that a run was begun with, which no schema has checked."""
    try:
        tree = yaml.safe_load(folder.read(CONFIG))
    except StorageError:
        raise  # the store is away
    except (OSError, ValueError, yaml.YAMLError) as error:
        tree, reason = None, " ".join(str(error).split())
    else:
        reason = "the file holds no config"
    if not isinstance(tree, dict):
        raise StorageError(
            f"'{folder.uri}/{CONFIG}' is damaged ({reason}): restore the file from a copy, or begin another run with "
            "if_exists=new"
        )
    return tree


def _known_keys(kind: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that this version does not know, in sections of any depth."""
    known: dict[str, Any] = {}
    for key, value in tree.items():
        inner = kind.model_fields[key].annotation if key in kind.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            known[key] = _known_keys(inner, value)
        elif key in kind.model_fields:
            known[key] = value
    return known


def _unnamed_folder(config: RunConfig, storage: Folder, is_done: Callable[[RunFolder], bool]) -> RunFolder:
    """Continue an unfinished run of the same config that no process works on, else begin a new one."""
    free = type(config).free_on_resume
    # A key that is added or removed changes the hash, and no unfinished run of an earlier version is found any more,
    # unless the key is among those that may differ on resume, or is in `BEFORE` and has its default.
    flat = {key: value for key, value in flatten(config).items() if not key.startswith(free)}
    flat = {key: value for key, value in flat.items() if key not in BEFORE or value != _default(config, key)}
    digest = hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:6]
    source = config.data.source.partition("?")[0].rstrip("/").rpartition("/")[2]
    words = (
        f"{plain_name(config.model.name)}-{plain_name(source)}".replace(":", "-")
        .replace("*", "")
        .replace(".", "-")
    )
    stem = f"{config.name_prefix}{words}-{digest}"
    for number in range(1, 10_000):
        folder = RunFolder(f"{storage.uri}/{stem}-{number}")
        is_new = not folder.exists(Identity.file)
        is_open = is_new or (config.if_exists == "resume" and not is_done(folder))
        if is_open and folder.watch_holder() is None:
            if not is_new:
                folder.identity()  # damage is reported before anything starts
            return folder
    raise StorageError(f"'{storage.uri}' holds 10000 runs named {stem}: set run_name, or clear it up")


def _default(config: RunConfig, key: str) -> Any:
    return dict(fields(type(config)))[key].get_default(call_default_factory=True)


def _numbered_folder(storage: Folder, name: str) -> RunFolder:
    number = 2
    while storage.exists(f"{name}-{number}"):
        number += 1
    return RunFolder(f"{storage.uri}/{name}-{number}")


def _check_writable(storage: Folder) -> None:
    """Whether the folder could be made and written, without making it."""
    path = Path(storage.uri)
    while not path.exists():
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        raise StorageError(
            f"storage_path '{storage.uri}' cannot be written ('{path}' is not a folder this user may write): "
            "give another storage_path"
        )
