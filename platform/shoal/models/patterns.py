"""Parameters of a model by patterns of their names, as a shell writes them: `encoder.*`, `*.bias`, `head`.

A pattern that matches a module's name stands for all parameters in it. Depends on names alone.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from shoal.errors import ModelError, nearest


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or that of a module around it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def first_matches(model: nn.Module, patterns: Sequence[str], key: str) -> dict[str, str]:
    """Return the first pattern that matches, by the name of each trained parameter that has one.

    A tied parameter goes by each of its names, and is returned by the first one.

    Args:
        key: of the config that the patterns are from.

    Raises:
        ModelError: a pattern is the first match of no trained parameter.
    """
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for pattern in patterns:
        matched = [
            (name, first_name[id(parameter)])
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad and matches(name, pattern)
        ]
        new = [name for _, name in matched if name not in found]
        if not new:
            raise ModelError(f"{key} names '{pattern}', {_why_none(model, pattern, bool(matched))}")
        found |= dict.fromkeys(new, pattern)
    return found


def _why_none(model: nn.Module, pattern: str, is_taken: bool) -> str:
    if is_taken:
        return "whose parameters earlier patterns match already: put it before them, or leave it out"
    names = [name for name, _ in model.named_parameters()]
    if any(matches(name, pattern) for name in names):
        return "whose parameters are frozen already: leave it out"
    modules = [name for name, _ in model.named_modules() if name]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"which matches no parameter{nearest(pattern, [*modules, *names])}: the model has {shown}"
