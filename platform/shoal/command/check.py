"""Check config, data and model, and train nothing: shoal check [CONFIG.yaml] [dotted.key=value ...]"""

from shoal.command import train


def main(arguments: list[str]) -> int:
    """Do what `shoal train --check` does."""
    return train.main(["--check", *arguments], "shoal check")
