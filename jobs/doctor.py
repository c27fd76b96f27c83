"""Check a cluster before a training: python jobs/doctor.py [CONFIG.yaml] [dotted.key=value ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal doctor` does."""
    from shoal.command import doctor  # an interrupt meanwhile is one line, too

    return doctor.main(arguments, "python jobs/doctor.py")


if __name__ == "__main__":
    leave(run(main))
