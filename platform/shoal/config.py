"""The config machinery: defaults <- YAML file <- `dotted.key=value` overrides, frozen once built.

It knows how a tree of sections is read, checked and described. It knows none of the sections: each lives
beside the code it configures, and `shoal.cluster.config` joins them.
"""

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from shoal.errors import ConfigError, nearest

Tree = TypeVar("Tree", bound="Section")


class Section(BaseModel):
    """A frozen group of config keys that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with `{dotted.key: value}` changes applied and checked again."""
        tree = self.model_dump()
        for key, value in changes.items():
            _assign(tree, key, value)
        return build(type(self), tree)


def load(schema: type[Tree], path: str | None = None, overrides: Sequence[str] = ()) -> Tree:
    """Build a config from defaults, then a YAML file, then `dotted.key=value` strings.

    Raises:
        ConfigError: the file does not parse, or a key or value is refused.
    """
    return build(schema, read(path, overrides))


def read(path: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a file and settings say, as a nested mapping that no schema has seen yet.

    Raises:
        ConfigError: the file does not parse, or a setting is none.
    """
    tree = _read_yaml(path) if path else {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ConfigError(f"'{override}' is not a setting: write it as key=value, e.g. optim.lr=0.01")
        try:
            value = yaml.load(text, Loader=Loader)
        except yaml.YAMLError:
            value = text
        _assign(tree, key.strip(), value)
    return tree


def build(schema: type[Tree], tree: Mapping[str, Any]) -> Tree:
    """Check a nested mapping against the schema.

    Raises:
        ConfigError: names the first offending key with its value, its rule and what to do.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(schema, error)) from None


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


def to_yaml(section: BaseModel) -> str:
    """Return the resolved config as YAML, in the order of the schema."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False)


def describe(schema: type[BaseModel]) -> str:
    """Return a table of every key with its type, default and meaning, for `--help`."""
    lines = []
    for key, field in fields(schema):
        default = yaml.safe_dump(field.get_default(call_default_factory=True), default_flow_style=True)
        default = default.removesuffix("\n").removesuffix("\n...")
        lines.append(f"  {key:<28} {_type_name(field.annotation):<34} {default:<18} {field.description}")
    return "\n".join(lines)


def fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every leaf key of a schema with its field."""
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


class Loader(yaml.SafeLoader):
    """YAML that reads `1e-3` as the number everybody means by it (YAML 1.1 wants `1.0e-3`)."""


Loader.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config file '{path}' cannot be read ({error.__class__.__name__}): give the path of a YAML file"
        ) from None
    try:
        tree = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"config file '{path}' does not parse{where}: {problem}: mend that line") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file '{path}' holds {tree!r}: it must hold `key: value` lines")
    return _undotted(tree)


def _undotted(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Let a file say `optim.lr: 0.1` as well as `optim: {lr: 0.1}`."""
    nested: dict[str, Any] = {}
    for key, value in tree.items():
        _assign(nested, str(key), value)
    return nested


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
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


def _explain(schema: type[BaseModel], error: ValidationError) -> str:
    """Turn the first of pydantic's findings into one line for a person."""
    finding = error.errors()[0]
    key = ".".join(str(part) for part in finding["loc"] if not _is_branch(part))
    known = dict(fields(schema))
    if finding["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_meant(key, known)}: `--help` lists every key"
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    message = finding["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    value = finding.get("input")
    if finding["type"] in ("model_type", "model_attributes_type"):
        return f"'{key}' is {value!r}: it is a section and wants keys below it, e.g. {_example(key, known)}"
    field = known.get(key) or known.get(key.rpartition(".")[0])
    if field is None:
        return message
    return f"{key}={value!r}: {message} (type: {_type_name(field.annotation)}; {field.description})"


def _meant(key: str, known: Mapping[str, FieldInfo]) -> str:
    """`lr` is most likely meant as `optim.lr`."""
    same = next((name for name in known if name.rpartition(".")[2] == key), None)
    return f" (did you mean '{same}'?)" if same else nearest(key, known)


def _is_branch(part: int | str) -> bool:
    """Whether a location names a branch of a union (`bool`, `literal['auto']`), not a key."""
    return isinstance(part, str) and (part in {"bool", "int", "float", "str"} or "[" in part)


def _example(section: str, known: Mapping[str, FieldInfo]) -> str:
    return next((key for key in known if key.startswith(f"{section}.")), section) + "=..."


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        return "|".join(_type_name(inner) for inner in get_args(annotation))
    if annotation is types.NoneType:
        return "null"
    if get_origin(annotation) is dict:
        return "{name: value}"
    return {bool: "true|false"}.get(annotation, getattr(annotation, "__name__", str(annotation)))
