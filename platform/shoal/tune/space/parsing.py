"""Reads ranges: `key=range` on the command line, or a `space:` block of a file."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shoal.config.import_path import is_path
from shoal.errors import ConfigError, nearest
from shoal.tune.space.domains import (
    WORDS,
    Choice,
    Domain,
    Grid,
    LogUniform,
    Space,
    describe_domain,
    is_domain,
)
from shoal.tune.space.values import has_paired_brackets, plain_value, read_list, write_list

# Words whose arguments colons may separate; that of `by` has one itself.
COLON_WORDS = tuple(word for word in WORDS if word != "by")


def parse_setting(key: str, text: str) -> Domain | None:
    """Read the value of a `key=value` setting; None when it is a plain value and not a range.

    A range is a word with brackets, `loguniform(1e-4, 1e-1)`, the same with colons, which a shell takes unquoted,
    `loguniform:1e-4:1e-1`, or a list with commas, `32,64,128`. A text in quotes is none of them: `'f(x)'`.

    Raises:
        ConfigError: the word is unknown, or the range breaks one of its rules.
    """
    try:
        return _parse(text.strip())
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from None


def parse_block(block: Mapping[str, Any]) -> Space:
    """Read the `space:` block of a YAML file, in which every key is a range.

    Keys are dotted or nested; a value is a text as in `parse_setting`, a list, or `{word: arguments}`.

    Raises:
        ConfigError: a value is no range, a range breaks a rule, or a key is there twice.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(
            f"space={block!r}: it must hold `key: range` lines, e.g. optim.lr: {LogUniform.example}"
        )
    space: Space = {}
    for key, domain in _entries(block, ""):
        if key in space:
            raise ConfigError(
                f"{key}={describe_domain(domain)}: the key is in space: twice: keep one of them"
            )
        space[key] = domain
    return space


def _entries(block: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Domain]]:
    for name, value in block.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and WORDS.keys().isdisjoint(value):
            yield from _entries(value, f"{key}.")
        else:
            yield key, _entry(key, value)


def _entry(key: str, value: Any) -> Domain:
    if isinstance(value, Mapping) and len(value) > 1:
        raise ConfigError(f"{key}={value!r}: a range is one word: write e.g. {{loguniform: [1e-4, 1e-1]}}")
    try:
        domain = read_value(value)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from None
    if not is_domain(domain):
        raise ConfigError(f"{key}={value!r}: it is a value and not a range: set it outside of space:")
    return domain


def read_value(value: Any) -> Any:
    """Turn a value from a file or a function into a range or a plain value.

    Raises:
        ConfigError: it is neither, or a range breaks a rule.
    """
    if is_domain(value):
        return value
    if isinstance(value, str):
        return _parse(value.strip()) or value
    if isinstance(value, list | tuple):
        return Grid(tuple(value))
    if isinstance(value, Mapping) and len(value) == 1:
        [(word, arguments)] = value.items()
        if word in WORDS:
            return _make(word, arguments if isinstance(arguments, list | tuple) else [arguments])
    return plain_value(value)


def _parse(text: str) -> Domain | None:
    call = re.match(r"([A-Za-z_]\w*)(\s*)\(", text)
    if call and call[1] in WORDS:
        return _make(call[1], _arguments(text, call[1], text[call.end() : -1]))
    if call and not call[2] and text.endswith(")"):
        raise ConfigError(
            f"{text}: unknown range '{call[1]}'{nearest(call[1].lower(), WORDS)}: "
            f"the ranges are {', '.join(WORDS)}; a plain text goes in quotes"
        )
    word, colon, inside = text.partition(":")
    if (
        colon and word in COLON_WORDS and not is_path(text)
    ):  # `choice:make` is a function of a module `choice`
        return _make(word, _between_colons(text, word, inside))
    return _comma_list(text)


def _between_colons(text: str, word: str, inside: str) -> list[Any]:
    values = [read_list(part) for part in inside.split(":")]
    if any(value is None or len(value) != 1 for value in values):
        raise ConfigError(
            f"{text}: a value is missing between colons, or has a comma or a sign in it: write e.g. "
            f"{WORDS[word].example} in quotes"
        )
    return [value[0] for value in values if value]


def _arguments(text: str, word: str, inside: str) -> list[Any]:
    example = WORDS[word].example
    if not text.endswith(")"):
        raise ConfigError(
            f"{text}: the bracket after '{word}' does not close at the end: write e.g. {example}"
        )
    values = read_list(inside)
    if values is None:
        raise ConfigError(
            f"{text}: '{inside}' is not a list: write e.g. {example}, and quote texts with signs in them"
        )
    is_one_list = len(values) == 1 and isinstance(values[0], list)  # Ray Tune writes choice([adam, sgd])
    return values[0] if is_one_list and issubclass(WORDS[word], Grid | Choice) else values


def _make(word: str, arguments: list[Any] | tuple[Any, ...]) -> Domain:
    kind = WORDS[word]
    if issubclass(kind, Grid | Choice):
        return kind(tuple(arguments))
    names = [field.name for field in dataclasses.fields(kind)]
    if len(arguments) != len(names):
        raise ConfigError(
            f"{word}({write_list(arguments)}): it has {len(arguments)} arguments and takes {len(names)} "
            f"({', '.join(names)}): write e.g. {kind.example}"
        )
    return kind(*arguments)


def _comma_list(text: str) -> Grid | None:
    values = read_list(text)
    if values is None or len(values) < 2 or not all(has_paired_brackets(value) for value in values):
        return None
    if "{" not in text and any(isinstance(value, dict) for value in values):
        return None  # `a: 1, b: 2` lacks its braces
    return Grid(tuple(values))
