"""A job's arguments: options, a config file, settings; and answers to the ways in which they are mistyped.

Each mistake is a ConfigError, which `shoal.terminal.errors.run` prints as one line.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic import BaseModel

from shoal.config.loading import describe
from shoal.config.schema import fields, suggested_key
from shoal.errors import ConfigError

CONFIG_FILES = (".yaml", ".yml")


class JobParser(argparse.ArgumentParser):
    """argparse's parser, which shows the keys of a config below its help and raises instead of exiting."""

    def __init__(
        self, usage: str, description: str, schema: type[BaseModel] | None = None, notes: str = ""
    ) -> None:
        """Make a parser without arguments.

        Args:
            usage: the command.
            description: what it does.
            schema: the config whose keys are settings.
            notes: what help says above the table of keys.
        """
        keys = f"keys (type, default, meaning):\n{describe(schema)}" if schema else ""
        super().__init__(
            usage=usage,
            description=description,
            epilog=f"{notes}{keys}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._schema, self._words = schema, list[str]()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Keep the arguments for `error`, as they were typed."""
        self._words = self._words or list(args)
        return super().parse_known_args(args, namespace)  # type: ignore[no-any-return]

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments; an option that is a key of the config is answered with its setting.

        Raises:
            ConfigError: always.
        """
        unknown = message.partition("unrecognized arguments: ")[2].split()
        option = next((word for word in unknown if word.startswith("-")), None)
        if option and self._schema:
            raise ConfigError(self._option_text(option))
        raise ConfigError(f"{message}: see --help")

    def _option_text(self, option: str) -> str:
        name, sign, value = option.lstrip("-").partition("=")
        after = self._words[self._words.index(option) + 1 :][:1]
        if not sign and after and "=" not in after[0] and not after[0].endswith(CONFIG_FILES):
            value = after[0]
        known = dict(fields(self._schema)) if self._schema else {}
        key = suggested_key(name.replace("-", "_"), known)
        remedy = f"write {key}={value or '...'}" if key else "see --help"
        return f"'{option}' is no option: settings are key=value, without dashes: {remedy}"


def file_and_settings(texts: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split a job's arguments into its config file, if there is one, and its settings.

    Raises:
        ConfigError: there are several files, or spaces around a sign.
    """
    files = [text for text in texts if "=" not in text]
    for number, text in enumerate(texts):
        if text.startswith("=") or (text.endswith("=") and _is_value(texts[number + 1 : number + 2])):
            around = texts[max(0, number - text.startswith("=")) : number + 1 + text.endswith("=")]
            raise ConfigError(f"'{' '.join(around)}' has spaces: write {''.join(around)}")
    if len(files) > 1:
        settings = [text for text in files if not text.endswith(CONFIG_FILES)]
        hint = f": '{settings[0]}' is no key=value setting" if settings else ""
        raise ConfigError(f"one config file at most, not {' and '.join(files)}{hint}")
    return (files[0] if files else None), [text for text in texts if "=" in text]


def _is_value(after: Sequence[str]) -> bool:
    return bool(after) and "=" not in after[0] and not after[0].endswith(CONFIG_FILES)
