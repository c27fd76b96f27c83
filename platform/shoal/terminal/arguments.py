"""A job's arguments: options, a config file, settings; and answers to the ways in which they are mistyped.

Each mistake is a ConfigError, which `shoal.terminal.errors.run` prints as one line.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic import BaseModel

from shoal.config.loading import describe
from shoal.config.schema import fields, suggested_key
from shoal.errors import ConfigError, nearest

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
        super().__init__(
            usage=usage,
            description=description,
            epilog=notes,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._schema, self._words = schema, list[str]()
        of_section = "; --help SECTION: the keys of one section, e.g. --help optim" if schema else ""
        self.add_argument(
            "-h",
            "--help",
            nargs="?",
            const="",
            metavar="SECTION",
            action=_Help,
            help=f"show this help{of_section}",
        )

    def format_help(self) -> str:
        """Return the help with the table of all keys below it."""
        keys = f"keys (type, default, meaning):\n{describe(self._schema)}\n" if self._schema else ""
        return f"{super().format_help()}{keys}"

    def help_on(self, section: str) -> str:
        """Return the keys of one section of the config, or one key; without any, the whole help.

        Raises:
            ConfigError: there is no such section.
        """
        if not section or self._schema is None:
            return self.format_help()
        keys = [key for key, _ in fields(self._schema)]
        sections = list(dict.fromkeys(key.partition(".")[0] for key in keys if "." in key))
        if section not in (*sections, *keys):
            raise ConfigError(
                f"--help {section}: the config has no such section{nearest(section, [*sections, *keys])}: its sections "
                f"are {', '.join(sections)}"
            )
        return f"{describe(self._schema, section)}\n"

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
        is_switch = key in known and known[key].annotation is bool
        remedy = f"write {key}={value or ('true' if is_switch else '...')}" if key else "see --help"
        return f"'{option}' is no option: settings are key=value, without dashes: {remedy}"


class _Help(argparse.Action):
    """Prints the help of a `JobParser` and ends the process with 0."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, values: Any, option: str | None = None
    ) -> None:
        assert isinstance(parser, JobParser)
        is_section = values and "=" not in values and not values.endswith(CONFIG_FILES)
        print(parser.help_on(values if is_section else ""), end="", flush=True)
        parser.exit()


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
