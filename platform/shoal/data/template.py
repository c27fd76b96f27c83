"""Where the columns of a block are in a tree: what an item of a data set looked like, with a column's name per leaf.

It knows names alone; independent of tensors, files and models.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from typing_extensions import TypeAliasType

Template = TypeAliasType("Template", "str | dict[str, Template] | tuple[Template, ...]")


def names(template: Template) -> Iterator[str]:
    """Yield the columns of a tree, in its order."""
    if isinstance(template, str):
        yield template
        return
    for branch in template.values() if isinstance(template, dict) else template:
        yield from names(branch)


def fill(template: Template, leaf: Callable[[str], Any]) -> Any:
    """Return a tree of the same form: what `leaf` returns for each column."""
    if isinstance(template, str):
        return leaf(template)
    if isinstance(template, dict):
        return {name: fill(branch, leaf) for name, branch in template.items()}
    return tuple(fill(branch, leaf) for branch in template)


def keep(template: Template, kept: Iterable[str]) -> Template | None:
    """Return a tree without the columns that are not kept; None: nothing is left."""
    if isinstance(template, str):
        return template if template in set(kept) else None
    if isinstance(template, dict):
        left = {name: keep(branch, kept) for name, branch in template.items()}
        return {name: branch for name, branch in left.items() if branch is not None} or None
    return tuple(found for branch in template if (found := keep(branch, kept)) is not None) or None


def joined(parts: Mapping[str, Template]) -> Template | None:
    """Return one tree of named parts; one part alone is the tree."""
    return dict(parts) if len(parts) > 1 else next(iter(parts.values()), None)
