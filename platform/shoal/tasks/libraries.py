"""Libraries that some tasks alone need: whether they are installed is found before anything starts."""

import importlib
from typing import NamedTuple

from shoal.errors import ConfigError


class Library(NamedTuple):
    """A module, and the extra of Shoal's installation that has it."""

    module: str
    extra: str

    def check(self, asked: str) -> None:
        """Refuse what was asked where the module is not there.

        Raises:
            ConfigError: it cannot be imported; with the command that installs it.
        """
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            raise ConfigError(
                f"{asked} needs the package {self.module.replace('_', '-')} ({error}): pip install "
                f"'shoal[{self.extra}]'"
            ) from None
