"""A config from what a person writes: defaults <- YAML file <- `dotted.key=value`; and the table of `--help`."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from shoal.config.schema import ONE_VALUE, Tree, assign, build_config, fields, type_name
from shoal.config.secrets import hide, mask
from shoal.errors import ConfigError

# A setting with a range of `tune`; a module of the user's may have such a name, so one argument is none.
RANGE = re.compile(
    r"[\w.]+=\s*(?:grid|grid_search|choice|q?uniform|q?loguniform|randint|by)\s*(?:\(.*\)|:[^:]*:.*)",
    re.DOTALL,
)

TYPE_CHARS = 34  # of a type in the table of keys


def load(schema: type[Tree], path: str | None = None, overrides: Sequence[str] = ()) -> Tree:
    """Build a config from defaults, then a YAML file, then `dotted.key=value` strings.

    Raises:
        ConfigError: the file does not parse, or a key or value is refused.
    """
    for override in overrides:
        if RANGE.fullmatch(override):
            raise ConfigError(f"{override}: {ONE_VALUE}")
    return build_config(schema, read(path, overrides))


def read(path: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a file and of settings as a nested mapping, not checked against a schema, secrets hidden.

    Raises:
        ConfigError: the file does not parse, or a setting is not `key=value`.
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
        assign(tree, key.strip(), value)
    return hide(tree)


def to_yaml(section: BaseModel) -> str:
    """Return the resolved config as YAML, in the order of the schema."""
    return mask(yaml.dump(section.model_dump(mode="json"), Dumper=Dumper, sort_keys=False))


def describe(schema: type[BaseModel], section: str = "") -> str:
    """Return a table of every key with its type, default and meaning, for `--help`.

    Args:
        section: of whose keys alone; or one key.
    """
    lines = []
    for key, field in fields(schema):
        if section and key != section and not key.startswith(f"{section}."):
            continue
        default = yaml.safe_dump(field.get_default(call_default_factory=True), default_flow_style=True)
        default = default.removesuffix("\n").removesuffix("\n...")
        kind, meaning = type_name(field.annotation), field.description
        if len(kind) > TYPE_CHARS:
            kind, meaning = "one of those at the right", f"{meaning}: {kind}"
        lines.append(f"  {key:<28} {kind:<{TYPE_CHARS}} {default:<18} {meaning}")
    return "\n".join(lines)


# libyaml's writes the same text as Python's in a tenth of the 8 ms that a config takes.
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Loader(yaml.SafeLoader):
    """YAML that reads `1e-3` as a number, which YAML 1.1 writes as `1.0e-3`, and leaves dates as texts."""


Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def shipped_configs() -> dict[str, Path]:
    """Return the configs that come with Shoal, by file name: `digits.yaml`, ..."""
    return {path.name: path for path in sorted((Path(__file__).parent / "shipped").glob("*.yaml"))}


def _find_config(path: str) -> Path:
    """Return a config file: the user's own, or one that comes with Shoal, by its name."""
    shipped = shipped_configs()
    name = path if path.endswith((".yaml", ".yml")) else f"{path}.yaml"
    return Path(path) if Path(path).exists() else shipped.get(name, Path(path))


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        text = _find_config(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config file '{path}' cannot be read ({error.__class__.__name__}){_nearest_file(path)}: "
            "give the path of a YAML file"
        ) from None
    try:
        tree = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"config file '{path}' does not parse{where}: {problem}: fix that line") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file '{path}' holds {tree!r}: it must hold `key: value` lines")
    return _undotted(tree)


def _nearest_file(path: str) -> str:
    """Suggest a YAML file with a name like that of one that is not there: in its folder, or of Shoal's own."""
    own = (file for kind in ("*.yaml", "*.yml") for file in Path(path).parent.glob(kind))
    files = {name: name for name in shipped_configs()} | {file.name: str(file) for file in own}
    name = Path(path).name
    found = difflib.get_close_matches(name if "." in name else f"{name}.yaml", files, n=1)
    return f" (did you mean '{files[found[0]]}'?)" if found else ""


def _undotted(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Allow `optim.lr: 0.1` in a file as well as `optim: {lr: 0.1}`."""
    nested: dict[str, Any] = {}
    for key, value in tree.items():
        assign(nested, str(key), value)
    return nested
