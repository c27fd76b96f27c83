"""Tune narrow, train wide: python jobs/transfer.py [CONFIG.yaml] --to model.width=N [--verify] [key=value ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal transfer` does."""
    from shoal.command import transfer  # an interrupt meanwhile is one line, too

    return transfer.main(arguments, "python jobs/transfer.py")


if __name__ == "__main__":
    leave(run(main))
