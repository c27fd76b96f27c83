"""Sweep over learning rate, width or any other key: python jobs/tune.py [CONFIG.yaml] [key=value | key=range ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal tune` does."""
    from shoal.command import tune  # an interrupt meanwhile is one line, too

    return tune.main(arguments, "python jobs/tune.py")


if __name__ == "__main__":
    leave(run(main))
