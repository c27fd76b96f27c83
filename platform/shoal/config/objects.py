"""A user's own objects where a config names code or data: `object:NAME-DIGEST`, for one that no import path names.

A class or function of a script, a notebook or a closure is kept by value: pickled, with its source text beside it, it
travels to every process of a run, into the run folder and into the saved model. Data (frames, datasets) stay in the
process that they were passed in. The digest is of the content, so that the same script names the same objects.
"""

import functools
import importlib
import inspect
import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from shoal.config.object_digest import digest, import_path_of
from shoal.config.object_source import source_of
from shoal.errors import UserError

SCHEME = "object:"
FOLDER = "objects"  # of a run folder, and of a saved model's code
_REFERENCE = re.compile(r"object:([A-Za-z_]\w*)-[0-9a-f]{8}")
_NO_VALUE = object()  # it is still pickled


@dataclass
class _Kept:
    """An object, or its pickle until it is needed.

    Attributes:
        pickled: None for data.
        source: text, where there is one.
    """

    value: Any
    pickled: bytes | None
    source: str | None = None


_KEPT: dict[str, _Kept] = {}  # by reference


def is_reference(text: str) -> bool:
    """Whether a name is that of an object by value."""
    return bool(_REFERENCE.fullmatch(text))


def plain_name(text: str) -> str:
    """Return the name in a reference, for a person: `Net` of `object:Net-1a2b3c4d`; any other text as it is."""
    match = _REFERENCE.fullmatch(text)
    return match[1] if match else text


def is_code(value: Any) -> bool:
    """Whether a value is a function, a class or the like, and not an instance or data."""
    return inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, functools.partial)


def register(value: Any, key: str, is_data: bool = False) -> str:
    """Return the name of an object for a config: its import path, or a reference to it by value.

    Args:
        key: of the config, for messages.
        is_data: whether it stays in this process.

    Raises:
        UserError: it cannot be pickled; the message names what in it cannot.
    """
    path = None if is_data else import_path_of(value)
    if path:
        return path
    reference = f"{SCHEME}{_name_of(value)}-{digest(value)[:8]}"
    _KEPT[reference] = _Kept(
        value, None if is_data else _pickled(value, key), None if is_data else source_of(value)
    )
    return reference


def is_kept(reference: str) -> bool:
    """Whether this process has the object of a reference."""
    return reference in _KEPT


def get(reference: str, key: str) -> Any:
    """Return the object of a reference.

    Raises:
        UserError: this process does not have it.
    """
    kept = _KEPT.get(reference)
    if kept is None:
        raise UserError(
            f"{key}='{reference}' is an object that was passed from Python, and this process does not have it: pass "
            "it again, by the script or notebook that defines it"
        )
    if kept.value is _NO_VALUE:
        kept.value = _unpickled(kept.pickled or b"", reference, key)
    return kept.value


def references(value: Any) -> Iterator[str]:
    """Yield the references in a value of a config, however deep."""
    if isinstance(value, str):
        if is_reference(value):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def pickles(names: Iterable[str]) -> dict[str, bytes]:
    """Return the pickles of the references that are code, for another process."""
    found = ((name, _KEPT[name].pickled) for name in names if name in _KEPT)
    return {name: pickled for name, pickled in found if pickled is not None}


def receive(pickled: Mapping[str, bytes]) -> None:
    """Let this process have the objects of another one; each is unpickled when it is needed."""
    for name, data in pickled.items():
        _KEPT.setdefault(name, _Kept(_NO_VALUE, data))


def files_of(names: Iterable[str]) -> dict[str, bytes]:
    """Return the files to keep of the references that are code, by name: `NAME-DIGEST.pkl`, `NAME-DIGEST.py`."""
    files: dict[str, bytes] = {}
    for name, data in pickles(names).items():
        stem, source = name.removeprefix(SCHEME), _KEPT[name].source
        files[f"{stem}.pkl"] = data
        if source:
            files[f"{stem}.py"] = source.encode()
    return files


def receive_files(folder: Path) -> None:
    """Let this process have the objects in a folder that `files_of` filled."""
    for path in sorted(folder.glob("*.pkl")):
        name = SCHEME + path.stem
        if is_reference(name):
            source = path.with_suffix(".py")
            text = source.read_text() if source.is_file() else None
            _KEPT.setdefault(name, _Kept(_NO_VALUE, path.read_bytes(), text))


def _name_of(value: Any) -> str:
    inner = value.func if isinstance(value, functools.partial) else value
    name = getattr(inner, "__name__", None) or type(value).__name__
    return re.sub(r"\W+", "_", str(name)).strip("_").lstrip("0123456789") or "object"


def _dumps(value: Any) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            # cloudpickle takes a function that uses `torch` and an attribute `classes` to use the module
            # torch.classes, which is of a class of its own and so is unknown to it.
            if isinstance(obj, ModuleType) and type(obj) is not ModuleType:
                return importlib.import_module, (obj.__name__,)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def _pickled(value: Any, key: str) -> bytes:
    try:
        return _dumps(value)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key} is '{_name_of(value)}', which cannot be sent to the workers ({type(error).__name__}: {reason}): "
            f"it uses {_what_fails(value)}; make that inside the function, or put the code into a module that can be "
            "imported"
        ) from error


def _what_fails(value: Any) -> str:
    """Name the variable that a function or a class uses and that cannot be pickled."""
    functions = (
        [value] if inspect.isfunction(value) else list(filter(inspect.isfunction, vars(value).values()))
    )
    for function in functions:
        used = inspect.getclosurevars(function)
        for name, found in {**used.globals, **used.nonlocals}.items():
            try:
                _dumps(found)
            except Exception:
                return f"'{name}', a {type(found).__name__}"
    return "something that cannot be pickled"


def _unpickled(data: bytes, reference: str, key: str) -> Any:
    import pickle

    try:
        return pickle.loads(data)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}='{reference}' cannot be loaded here ({type(error).__name__}: {reason}): install what it needs, in "
            f"the versions that it was made with (this is Python {sys.version.split()[0]})"
        ) from error
