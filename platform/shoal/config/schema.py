"""A config as a tree of sections with typed keys, checked as a whole, frozen once built.

Independent of the sections: each is beside the code that it configures, and `shoal.runs.config` joins them. Independent
too of how a person writes a config (`shoal.config.loading`).
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from shoal.config.other_words import MEANT, explanation
from shoal.errors import ConfigError

# Of a range or a list where a training takes one value.
ONE_VALUE = "a run has one value of a key: give one, or try several in a sweep (`tune`)"

Tree = TypeVar("Tree", bound="Section")


class Section(BaseModel):
    """A frozen group of config keys that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with `{dotted.key: value}` changes applied and checked again."""
        tree = self.model_dump()
        for key, value in changes.items():
            assign(tree, key, value)
        return build_config(type(self), tree)


def build_config(schema: type[Tree], tree: Mapping[str, Any]) -> Tree:
    """Check a nested mapping against the schema.

    Raises:
        ConfigError: names the first offending key with its value, its rule and what to do.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(schema, error)) from None


def flatten(section: BaseModel) -> dict[str, Any]:
    """Return `{dotted.key: value}` for every leaf of the config."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every leaf key of a schema with its field."""
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key of a nested mapping; a mapping is merged with one that is there.

    Raises:
        ConfigError: a parent of the key holds a value instead of a section.
    """
    *parents, leaf = dotted.split(".")
    for parent in parents:
        inner = tree.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{dotted}' cannot be set: '{parent}' holds {inner!r}, not a section")
        tree = inner
    if isinstance(value, dict) and isinstance(tree.get(leaf), dict):
        tree[leaf] = tree[leaf] | value
    else:
        tree[leaf] = value


def explain(schema: type[BaseModel], error: ValidationError) -> str:
    """Turn the first of pydantic's findings into one line for a person."""
    finding = error.errors()[0]
    place = finding["loc"]
    if place and isinstance(place[-1], int):  # of a list, whose element is shown
        place = place[:-1]
    key = ".".join(str(part) for part in place if not _is_branch(part))
    known = dict(fields(schema))
    if finding["type"] == "extra_forbidden":
        if about := explanation(key, {name.partition(".")[0] for name in known}):
            return about
        return f"unknown key '{key}'{_suggestion(key, known)}: `--help` lists every key"
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    message = finding["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    value = finding.get("input")
    if finding["type"] in ("model_type", "model_attributes_type"):
        return f"'{key}' is {value!r}: it is a section and needs keys below it, e.g. {_example(key, known)}"
    field = known.get(key) or known.get(key.rpartition(".")[0])
    if field is None:
        return message
    if isinstance(value, str) and "," in value and finding["type"].endswith("_parsing"):
        message = f"{ONE_VALUE}; {message}"
    return f"{key}={value!r}: {message} (type: {type_name(field.annotation)}; {field.description})"


def suggested_key(key: str, known: Mapping[str, FieldInfo]) -> str | None:
    """Return the key that an unknown one stands for: `optim.lr` for `lr`, `optim.rl` and `optim.learning_rate`."""
    section, _, leaf = key.rpartition(".")
    meant = MEANT.get(leaf, "")
    if meant in known or meant.startswith("model.args."):
        return meant
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    inside = {name.rpartition(".")[2]: name for name in known if section in ("", name.rpartition(".")[0])}
    close = difflib.get_close_matches(leaf, inside) or [name for name in inside if _abbreviates(name, leaf)]
    whole = difflib.get_close_matches(key, known, cutoff=0.8 if section else 0.5)
    return next(iter([*same, *(inside[name] for name in close), *whole]), None)


def _suggestion(key: str, known: Mapping[str, FieldInfo]) -> str:
    likely, section = suggested_key(key, known), key.rpartition(".")[0]
    if likely:
        return f" (did you mean '{likely}'?)"
    inside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    return f" ({section} has {', '.join(inside)})" if section and inside else ""


def _abbreviates(short: str, word: str) -> bool:
    """Whether a word begins with the first letter of `short` and contains the others after it, in order."""
    letters = iter(word)
    return word[:1] == short[:1] and all(letter in letters for letter in short)


def _is_branch(part: int | str) -> bool:
    """Whether a location names a branch of a union (`bool`, `literal['auto']`), not a key."""
    names = ("bool", "int", "float", "str", "constrained-int", "constrained-float")
    return isinstance(part, str) and (part in names or "[" in part)


def _example(section: str, known: Mapping[str, FieldInfo]) -> str:
    return next((key for key in known if key.startswith(f"{section}.")), section) + "=..."


def type_name(annotation: Any) -> str:
    """Return a type as a person writes it."""
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        return "|".join(type_name(inner) for inner in get_args(annotation))
    if annotation is types.NoneType:
        return "null"
    if get_origin(annotation) is dict:
        return "{name: value}"
    return {bool: "true|false"}.get(annotation, getattr(annotation, "__name__", str(annotation)))
