"""Libraries that some tasks and jobs alone need: whether they are installed is found before anything starts."""

import importlib
from typing import NamedTuple

from shoal.errors import ConfigError


class Library(NamedTuple):
    """A module, and the extra of Shoal's installation that has it."""

    module: str
    extra: str

    def check(self, asked: str, otherwise: str | None = None) -> None:
        """Refuse what was asked where the module is not there.

        Args:
            otherwise: a setting that does not need it.

        Raises:
            ConfigError: it cannot be imported; with the command that installs it.
        """
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            package = self.module.partition(".")[0].replace("_", "-")
            remedy = f"pip install 'shoal[{self.extra}]'" + (f", or set {otherwise}" if otherwise else "")
            raise ConfigError(f"{asked} needs the package {package} ({error}): {remedy}") from None
