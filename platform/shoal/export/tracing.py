"""A graph recorded by torch, for any number of rows; or one line on why it cannot be recorded."""

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from shoal.errors import ModelError
from shoal.export.interface import BATCH, TOKENS, Input
from shoal.export.module import example_inputs

SHOAL = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).resolve().parent
WEIGHTS_ALONE = "export the weights alone with export.formats=safetensors"


def trace(module: nn.Module, inputs: Sequence[Input], context: int | None) -> ExportedProgram:
    """Record what a module computes.

    Args:
        inputs: that its forward takes, by place.
        context: the most tokens of a row; None: rows are no tokens.

    Raises:
        ModelError: its forward does what no graph can hold; the line of code is named.
    """
    dims: dict[str | int, Any] = {BATCH: Dim(BATCH, min=1)}
    if context is not None:
        dims[TOKENS] = Dim(TOKENS, min=2, max=context)
    shapes = tuple(
        {place: dims[size] for place, size in enumerate(one.shape) if size in dims} for one in inputs
    )
    examples = example_inputs(inputs)

    def record(is_strict: bool) -> ExportedProgram:
        with quiet(), torch.no_grad():
            return torch.export.export(module, examples, dynamic_shapes=(shapes,), strict=is_strict)

    try:
        return record(is_strict=False)
    except Exception as error:  # of torch, Dynamo, SymPy, or of the model's own code
        # A forward that asks for len(x) fixes the number of rows, except where Dynamo reads its code.
        with contextlib.suppress(Exception):
            return record(is_strict=True)
        raise ModelError(
            f"the model cannot be exported{_place(error)}: {reason(error)}; {_remedy(error)}, or {WEIGHTS_ALONE}"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what exporters print and log, which is said in one line if it matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """Return the first line of an error, and its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _place(error: Exception) -> str:
    """Return the last line of code of the model's own that was being run."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.resolve().is_relative_to(known) for known in (SHOAL, TORCH)):
            return f" at {path.name}:{frame.lineno} ('{frame.line}')"
    return ""


def _remedy(error: Exception) -> str:
    if "DataDependent" in type(error).__name__ or "data-dependent" in str(error):
        return "a graph cannot choose by the values of tensors in Python: compute both and choose with torch.where"
    return "a graph holds operations of torch alone: change its forward"
