"""What a checkpoint can hold of a user's own state: what PyTorch reads back without running code of the file."""

from collections import OrderedDict
from typing import Any

from torch import Tensor

SCALARS = (bool, int, float, complex, str, bytes, type(None))
REMEDY = "keep tensors, numbers, texts, lists and dicts alone"


def why_not_plain(value: Any, place: str = "") -> str | None:
    """Return what in a tree a checkpoint cannot hold, e.g. `['moments'][0] is a ndarray`; None if it can hold all."""
    if type(value) in SCALARS or isinstance(value, Tensor):
        return None
    if type(value) in (dict, OrderedDict):
        inner = [(item, f"{place}[{key!r}]") for key, item in value.items()]
        inner += [(key, f"{place} key {key!r}") for key in value]
    elif type(value) in (list, tuple, set):
        inner = [(item, f"{place}[{number}]") for number, item in enumerate(value)]
    else:
        return f"{place or 'it'} is a {type(value).__name__}"
    return next((found for item, where in inner if (found := why_not_plain(item, where))), None)
