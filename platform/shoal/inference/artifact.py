"""The files of a saved model: of which formats they may be, and whether they are those that were saved.

A model's folder may come from anywhere. `check_model` looks at it before a file of it is opened: only formats that hold
data are allowed, and each file must have the size and the SHA-256 that `manifest.json` states. It reads bytes; it does
not know models. Code below `code/` is compared too, and never imported here.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from shoal.errors import ModelError
from shoal.inference.artifact_code import CODE
from shoal.storage.durable import is_scratch

logger = logging.getLogger(__name__)

MANIFEST, MODEL_CARD = "manifest.json", "MLmodel"
LOADERS = ("shoal.inference.predictor", "shoal.predict")  # the second: of models saved by earlier versions
COMPILED = "__pycache__"  # written by Python beside code that was imported
HEADER_BYTES = 100_000_000  # the longest that safetensors itself reads
DATA = (
    ".json",
    ".yaml",
    ".yml",
    ".txt",
    ".md",
    ".html",
    ".png",
    ".parquet",
)  # which are read as data, by any reader
MLFLOW_FILES = (MODEL_CARD, "registered_model_meta")
AGAIN = "restore it from a copy, or train the model again with if_exists=new"


def write_manifest(model: Path) -> str:
    """Write the size and SHA-256 of each file of the weights' folder and of `code/`; return the digest.

    Args:
        model: folder of a saved MLflow model. `MLmodel`, which publishing writes again, is in no manifest.
    """
    [folder] = [path for path in (model / "data").iterdir() if path.is_dir()]
    list_files(model, _listed(model, folder), folder / MANIFEST)
    return _digest((folder / MANIFEST).read_bytes())


def list_files(root: Path, files: Iterable[Path], manifest: Path) -> None:
    """Write a manifest: the size and SHA-256 of files, by their path below a folder."""
    listed = {path.relative_to(root).as_posix(): _measured(path) for path in files}
    manifest.write_text(json.dumps({"files": listed}, indent=1, sort_keys=True))


def check_model(folder: Path) -> str:
    """Refuse a model whose files are of other formats, or other than those that were saved.

    A model of an earlier version has no manifest: a warning says so. Nor has a folder of weights outside a model, of
    which only the weights are looked at.

    Args:
        folder: of weights and description, `MODEL/data/NAME`.

    Returns:
        the digest: 12 hexadecimal digits that name these very files; empty of weights outside a model.

    Raises:
        ModelError: a file is missing, truncated, changed, added, or of a format that is not allowed.
    """
    folder = folder.resolve()
    model = folder.parents[1]
    is_packaged = (model / MODEL_CARD).is_file()
    if is_packaged:
        _check_card(model / MODEL_CARD, folder)
    for path in _files(model) if is_packaged else folder.glob("*.safetensors"):
        if not path.is_relative_to(model / CODE):
            check_file_format(path)
    manifest = folder / MANIFEST
    if manifest.is_file():
        files = _listed(model, folder) if is_packaged else _files(folder)
        check_files(model if is_packaged else folder, files, manifest)
        return _digest(manifest.read_bytes())
    if is_packaged:
        logger.warning(
            "the model in '%s' was saved by an earlier version, without a manifest: its files are loaded unchecked",
            model,
        )
        return _digest(json.dumps({path.name: _measured(path) for path in _files(folder)}).encode())
    return ""


def check_file_format(path: Path) -> None:
    """Refuse a file that could run code when it is read, or that states what it does not hold.

    Raises:
        ModelError: it is of a format that is not allowed, a link, a safetensors file that is longer or shorter than its
            header says, or an ONNX model whose tensors lie outside its folder.
    """
    if path.is_symlink():
        raise ModelError(f"'{path}' is a link: a model holds files only; copy what it names")
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif path.suffix == ".onnx":
        _check_onnx(path)
    elif path.suffix not in (*DATA, ".data") and path.name not in MLFLOW_FILES:
        raise ModelError(
            f"'{path}' is of a format that a model may not hold ('{path.suffix or path.name}'): reading it could run "
            "code; save weights as .safetensors, and remove this file"
        )


def _check_card(card: Path, folder: Path) -> None:
    """Refuse an MLmodel file that names another loader or other places than Shoal's."""
    try:
        flavor: dict[str, Any] = yaml.safe_load(card.read_text())["flavors"]["python_function"]
        loader, data, code = flavor["loader_module"], PurePosixPath(flavor["data"]), flavor.get("code", CODE)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"'{card}' is damaged ({type(error).__name__}: {reason}): {AGAIN}") from None
    if loader not in LOADERS:
        raise ModelError(
            f"'{card}' names loader_module='{loader}', code that is not Shoal's: load a model that Shoal wrote"
        )
    if data != PurePosixPath(folder.parent.name, folder.name) or code != CODE:
        raise ModelError(
            f"'{card}' names data '{data}' and code '{code}', which are not '{folder.parent.name}/{folder.name}' and "
            f"'{CODE}' of this model: {AGAIN}"
        )


def check_files(root: Path, files: Iterable[Path], manifest: Path, again: str = AGAIN) -> None:
    """Refuse files that are not those that a manifest lists.

    Args:
        root: the folder below which they are listed.
        files: that are there.
        again: how one comes by good ones.

    Raises:
        ModelError: one is missing, truncated, changed or added, or the manifest is damaged.
    """
    try:
        listed = dict(json.loads(manifest.read_bytes())["files"])
        expected = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in listed.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"'{manifest}' is damaged ({type(error).__name__}: {error}): {again}") from None
    outside = next((name for name in expected if ".." in Path(name).parts or Path(name).is_absolute()), None)
    if outside is not None:
        raise ModelError(f"'{manifest}' names '{outside}', a file outside of the model: {again}")
    for path in files:
        if path != manifest and path.relative_to(root).as_posix() not in expected:
            raise ModelError(f"'{path}' was not saved with the model ('{manifest}'): remove it")
    for name, (nbytes, digest) in expected.items():
        _check_file(root / name, nbytes, digest, again)


def _check_file(path: Path, nbytes: int, digest: str, again: str) -> None:
    if not path.is_file():
        raise ModelError(f"'{path}' is missing from the model: {again}")
    if path.stat().st_size != nbytes:
        raise ModelError(f"'{path}' has {path.stat().st_size} bytes, and {nbytes} were saved: {again}")
    if _sha256(path) != digest:
        raise ModelError(f"'{path}' is not as it was saved (its SHA-256 differs): {again}")


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES):
            raise ModelError(
                f"'{path}' states a header of {length} bytes, and has {size} in all: it is truncated or no "
                f"safetensors file; {AGAIN}"
            )
        try:
            tensors = [one for name, one in json.loads(file.read(length)).items() if name != "__metadata__"]
            end = 8 + length + max((int(one["data_offsets"][1]) for one in tensors), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(f"'{path}' has a damaged header ({type(error).__name__}): {AGAIN}") from None
    if end != size:
        raise ModelError(f"'{path}' has {size} bytes, and its header says {end}: {AGAIN}")


def _check_onnx(path: Path) -> None:
    """Refuse external data outside the folder; the protobuf itself holds no code."""
    try:
        import onnx
    except ImportError:
        raise ModelError(f"'{path}' cannot be checked without the package onnx: pip install onnx") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf, in several forms
        raise ModelError(f"'{path}' is no ONNX model ({type(error).__name__}: {error}): {AGAIN}") from None
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                _check_location(path, entry.value)


def _check_location(path: Path, location: str) -> None:
    """Refuse the name of a file with tensors that is not plainly a file beside the model."""
    beside = path.parent / location
    is_beside = Path(location).name == location and not beside.is_symlink()
    if not is_beside:
        raise ModelError(
            f"'{path}' names external data '{location}', which is no file beside it: export the model again"
        )
    if not beside.is_file():
        raise ModelError(
            f"'{path}' names external data '{location}', which is missing: copy it beside the model"
        )


def _tensors(message: Any) -> Iterator[Any]:
    """Yield the tensors of a protobuf message, however deep: of graphs, nodes, sub-graphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "__len__") else (value,):
                yield from _tensors(inner)


def _listed(model: Path, folder: Path) -> list[Path]:
    """Return the files that a manifest states: of the weights' folder and of `code/`, without what Python compiled."""
    found = [*_files(folder), *_files(model / CODE)]
    return [path for path in found if path != folder / MANIFEST and COMPILED not in path.parts]


def _files(folder: Path) -> list[Path]:
    """Return all files but those that another process just writes, which nothing reads under these names."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in found if not is_scratch(path.name))


def _measured(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
