"""Estimate memory and time, on any hardware: shoal plan [--mfu SHARE] [CONFIG.yaml] [dotted.key=value ...]"""

from shoal.command import train


def main(arguments: list[str]) -> int:
    """Do what `shoal train --plan` does."""
    return train.main(["--plan", *arguments], "shoal plan")
