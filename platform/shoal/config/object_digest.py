"""The digest of an object's content, the same in every process that makes the same object.

Pickles are not: those of classes hold random ids. Code counts by its bytecode, closure and the globals that it uses,
arrays and frames by their values, other objects by what they would pickle.
"""

import functools
import hashlib
import inspect
import sys
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

# By id: the digest, and the object itself, whose id would else be another's.
Seen = dict[int, tuple[bytes, Any]]

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
# Of a class: where it was defined, and what Python makes of it.
NOT_CONTENT = frozenset(
    (
        "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__",
        "__annotations__", "__annotate__", "__annotate_func__", "__abstractmethods__", "_abc_impl", "__classcell__",
    )
)  # fmt: skip


def digest(value: Any) -> str:
    """Return a hexadecimal digest of an object's content."""
    return _digest(value, {}).hex()


def import_path_of(value: Any) -> str | None:
    """Return `package.module:name` of a function or class that another process can import, or None."""
    module_name, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(name, str) or not name.isidentifier():
        return None
    module = sys.modules.get(module_name)
    if module_name in ("__main__", "__mp_main__") or getattr(module, "__spec__", None) is None:
        return None
    return f"{module_name}:{name}" if getattr(module, name, None) is value else None


def _digest(value: Any, seen: Seen) -> bytes:
    """Hash a value; one that is inside of itself counts as the place at which it was first met."""
    if isinstance(value, PLAIN):
        return _hash("plain", type(value).__name__, repr(value))
    path = import_path_of(value)
    if path or isinstance(value, ModuleType):
        return _hash("import", path or value.__name__)
    if id(value) not in seen:
        seen[id(value)] = _hash("again", str(len(seen))), value
        seen[id(value)] = _of_content(value, seen), value
    return seen[id(value)][0]


def _of_content(value: Any, seen: Seen) -> bytes:
    if isinstance(value, list | tuple):
        return _hash(type(value).__name__, *(_digest(item, seen) for item in value))
    if isinstance(value, set | frozenset):
        return _hash("set", *sorted(_digest(item, seen) for item in value))
    if isinstance(value, dict):
        return _hash("dict", *sorted(_digest(key, seen) + _digest(item, seen) for key, item in value.items()))
    if isinstance(value, CodeType):
        return _of_code(value, seen)
    if isinstance(value, type):
        return _of_class(value, seen)
    if isinstance(value, FunctionType):
        return _of_function(value, seen)
    parts = _parts(value)
    if parts is not None:
        return _hash(type(value).__name__, *(_digest(part, seen) for part in parts))
    return _of_data(value) or _of_instance(value, seen)


def _parts(value: Any) -> tuple[Any, ...] | None:
    """Return what a wrapper of functions holds."""
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    return None


def _of_code(code: CodeType, seen: Seen) -> bytes:
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return _hash("code", code.co_code, repr(counts), repr(names), _digest(code.co_consts, seen))


def _of_function(function: FunctionType, seen: Seen) -> bytes:
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    names = sorted(_names(function.__code__) & function.__globals__.keys())
    used = {name: function.__globals__[name] for name in names}
    parts = (function.__code__, function.__defaults__, function.__kwdefaults__, cells, used, vars(function))
    return _hash("function", *(_digest(part, seen) for part in parts))


def _of_class(kind: type, seen: Seen) -> bytes:
    content = {name: value for name, value in vars(kind).items() if name not in NOT_CONTENT}
    slots = {name for name, value in content.items() if inspect.ismemberdescriptor(value)}
    content = {name: value for name, value in content.items() if name not in slots}
    return _hash("class", kind.__name__, _digest(kind.__bases__, seen), _digest(content, seen))


def _of_data(value: Any) -> bytes | None:
    """Hash arrays, tensors and frames by their values; None for others."""
    package = type(value).__module__.partition(".")[0]
    if package == "numpy" and hasattr(value, "dtype"):
        return _of_array(value)
    if package == "torch" and hasattr(value, "layout") and hasattr(value, "detach"):
        return _of_tensor(value)
    if package == "pandas" and hasattr(value, "index"):
        return _of_pandas(value)
    if package in ("polars", "pyarrow"):
        return _of_arrow(value)
    if type(value).__module__.startswith("ray.data"):
        return _hash("ray", repr(value))  # its rows are checked when the run reads them
    return None


def _of_array(array: Any) -> bytes:
    if array.dtype.hasobject:
        return _hash("array", str(array.shape), *(_digest(item, {}) for item in array.ravel().tolist()))
    import numpy as np

    return _hash("array", str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes())


def _of_tensor(tensor: Any) -> bytes:
    import torch

    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return _hash(
        "tensor", str(tensor.dtype), str(tuple(tensor.shape)), plain.view(torch.uint8).numpy().tobytes()
    )


def _of_pandas(value: Any) -> bytes | None:
    import pandas as pd

    kinds = [str(kind) for kind in value.dtypes] if isinstance(value, pd.DataFrame) else [str(value.dtype)]
    names = list(map(str, getattr(value, "columns", [getattr(value, "name", "")])))
    try:
        return _hash(
            "pandas", repr((names, kinds)), pd.util.hash_pandas_object(value, index=False).values.tobytes()
        )
    except TypeError:  # cells that are lists
        return None


def _of_arrow(value: Any) -> bytes | None:
    import pyarrow as pa

    table = value.to_arrow() if hasattr(value, "to_arrow") else value
    if not isinstance(table, pa.Table):
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return _hash("arrow", sink.getvalue().to_pybytes())


def _of_instance(value: Any, seen: Seen) -> bytes:
    """Hash what an object would pickle; its type alone where it cannot."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        reduced = type(value).__qualname__
    if isinstance(reduced, str):  # the name of a global object
        return _hash("global", type(value).__name__, reduced)
    parts = [
        list(part) if index in (3, 4) and part is not None else part for index, part in enumerate(reduced)
    ]
    return _hash("instance", *(_digest(part, seen) for part in parts))


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet set
        return None


def _names(code: CodeType) -> set[str]:
    """Return the names that code uses, that of functions inside included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _hash(*parts: str | bytes) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.digest()
