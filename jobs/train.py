"""Train a model: python jobs/train.py [--check | --plan] [CONFIG.yaml] [dotted.key=value ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal train` does."""
    from shoal.command import train  # an interrupt meanwhile is one line, too

    return train.main(arguments, "python jobs/train.py")


if __name__ == "__main__":
    leave(run(main))
