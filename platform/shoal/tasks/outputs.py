"""What a model returns, and the one tensor of it that losses and metrics of Shoal's own are computed of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shoal.errors import ModelError

KEYS = ("logits", "output", "outputs")


def logits_of(outputs: Any) -> Tensor:
    """Return a tensor as it is; of a dict the first of `KEYS`, or its only tensor; of a tuple or list its first tensor.

    Raises:
        ModelError: there is none, or it is not clear which one is meant.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        named = [outputs[key] for key in KEYS if isinstance(outputs.get(key), Tensor)]
        found = [value for value in outputs.values() if isinstance(value, Tensor)]
        if named or len(found) == 1:
            return (named or found)[0]  # type: ignore[no-any-return]
    elif isinstance(outputs, tuple | list):
        first = next((value for value in outputs if isinstance(value, Tensor)), None)
        if first is not None:
            return first
    raise ModelError(
        f"the model returned {described(outputs)}: return one tensor of outputs, or a dict with the key 'logits'; a "
        "train.loss of your own takes whatever a model returns"
    )


def tensors_of(outputs: Any, rows: int | None = None) -> dict[str, Tensor]:
    """Return the tensors of rows that a model returns, float64 by name: `prediction` if there is one alone.

    Args:
        rows: leave out tensors that do not have so many; None: leave out none.

    Raises:
        ModelError: there is none.
    """
    if isinstance(outputs, Mapping):
        named = {str(name): value for name, value in outputs.items()}
    elif isinstance(outputs, tuple | list):
        named = {f"output_{place}": value for place, value in enumerate(outputs)}
    else:
        named = {"prediction": outputs}
    found = {
        name: value.double()
        for name, value in named.items()
        if isinstance(value, Tensor) and value.ndim and (rows is None or len(value) == rows)
    }
    if not found:
        raise ModelError(
            f"the model returned {described(outputs)} for {rows} rows: return a tensor with a row for each"
        )
    return found


def described(outputs: object) -> str:
    """Describe what a model returned instead of a tensor."""
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"a {kind} of {', '.join(map(repr, list(outputs)[:5])) or 'nothing'}"
    if isinstance(outputs, tuple | list):
        inner = ", ".join(type(value).__name__ for value in outputs[:5])
        return f"a {kind} of {len(outputs)} ({inner})"
    return f"a {kind}"
