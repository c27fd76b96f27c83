"""Check that training depends on no width: python jobs/coordinate_check.py [CONFIG.yaml] [dotted.key=value ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal coordinate-check` does."""
    from shoal.command import coordinate_check  # an interrupt meanwhile is one line, too

    return coordinate_check.main(arguments, "python jobs/coordinate_check.py")


if __name__ == "__main__":
    leave(run(main))
