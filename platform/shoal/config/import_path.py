"""A user's own function or class by its import path, `package.module:name`, or by a reference to an object."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shoal.config import objects
from shoal.errors import UserError, nearest

_NAMED: set[str] = set()  # import paths that this process has looked up


def is_path(text: str) -> bool:
    """Whether a name reads as `package.module:name` rather than a scheme such as `csv:data.csv`.

    References to objects by value (`shoal.config.objects`) are such names too.
    """
    if objects.is_reference(text):
        return True
    module, colon, name = text.partition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and dotted and name.partition("?")[0].isidentifier()


def missing_colon(text: str) -> str:
    """Return a " (did you mean 'module:name'?)" for `module.name`, or an empty string."""
    path, mark, arguments = text.partition("?")
    module, _, name = path.rpartition(".")
    is_dotted = bool(module) and all(part.isidentifier() for part in path.split("."))
    return f" (did you mean '{module}:{name}{mark}{arguments}'?)" if is_dotted else ""


def search_path() -> tuple[str, ...]:
    """Return the folders in which this process looks for modules, for another one that shares them."""
    return tuple(os.path.abspath(folder) for folder in sys.path)


def search_also(folders: Iterable[str]) -> None:
    """Look for modules in folders of another process too, after those of this one."""
    sys.path.extend(folder for folder in folders if folder not in sys.path and os.path.isdir(folder))


def find(path: str, key: str) -> Callable[..., Any]:
    """Import `package.module:name`, looking in the working directory first; or return the object of a reference.

    Raises:
        UserError: the module does not import, has no such name, or the name cannot be called; or this process does not
            have the object.
    """
    found = find_object(path, key)
    if not (callable(found) or objects.is_reference(path)):
        raise UserError(
            f"{key}='{path}': '{path.partition(':')[2]}' is a {type(found).__name__}, which cannot be called: "
            "name a function or class"
        )
    return found  # type: ignore[no-any-return]


def was_named(path: str) -> bool:
    """Whether this process has looked up an import path already: its own config names it."""
    return path.partition("?")[0] in _NAMED


def find_object(path: str, key: str) -> Any:
    """Do as `find` with anything that a module defines, whether it can be called or not.

    Raises:
        UserError: the module does not import, or has no such name; or this process does not have the object.
    """
    if objects.is_reference(path):
        return objects.get(path, key)
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"{key}='{path}': module '{module_name}' does not import ({type(error).__name__}: {error}): "
            "fix it, or run where it can be found (the working directory is searched first)"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise UserError(
            f"{key}='{path}': module '{module_name}' has no '{name}'{nearest(name, vars(module))}: "
            "name a function or class it defines"
        )
    _NAMED.add(path)
    return found


def call_with(function: Callable[..., Any], offered: Mapping[str, Any], required: Mapping[str, Any]) -> Any:
    """Call a function with all of `required`, and those of `offered` that its signature names.

    Raises:
        UserError: the function does not take a required keyword; the message has the nearest one that it takes.
    """
    parameters = inspect.signature(function).parameters
    called = getattr(function, "__name__", type(function).__name__)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in required:
        if name not in parameters and not takes_any:
            raise UserError(
                f"{called}() takes no '{name}'{nearest(name, parameters)}: "
                f"its parameters are {', '.join(parameters) or 'none'}"
            )
    accepted = {name: value for name, value in offered.items() if name in parameters or takes_any}
    return function(**{**accepted, **required})
