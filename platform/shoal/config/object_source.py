"""The source text of a function or class, from a script or a notebook's cell."""

import ast
import inspect
import linecache
import textwrap
from types import CodeType
from typing import Any


def source_of(value: Any) -> str | None:
    """Return the source text of a function, a class, or an object's class; None where Python does not have it."""
    kind = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    code = _code_of(kind)
    if code is None:
        return None
    lines = linecache.getlines(code.co_filename)
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:  # a cell with magic commands
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == kind.__name__
        ):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= code.co_firstlineno <= (node.end_lineno or first):
                return textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError, IndentationError):
        return None


def _code_of(value: Any) -> CodeType | None:
    """Return the code of a function, or of the first function of a class."""
    functions = [value] if inspect.isroutine(value) else vars(value).values()
    codes = (
        getattr(inspect.unwrap(function), "__code__", None) for function in functions if callable(function)
    )
    return next((code for code in codes if code is not None), None)
