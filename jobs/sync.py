"""Sync a run folder to MLflow, completely; a second time changes nothing: python jobs/sync.py RUN_FOLDER"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal sync` does."""
    from shoal.command import sync  # an interrupt meanwhile is one line, too

    return sync.main(arguments, "python jobs/sync.py")


if __name__ == "__main__":
    leave(run(main))
