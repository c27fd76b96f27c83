"""Runs every benchmark, one after another, and prints each required figure with its target and its verdict.

Reports go to benchmarks/results/NAME.json, which git ignores. Exit code 1 when a figure misses its target.
"""

import argparse
import json
import subprocess
import sys

from harness import RESULTS, ROOT, Figure, table

NAMES = ("throughput", "memory", "tracking", "journal", "startup", "scaling", "sweep", "language", "large", "transfer",
         "serving", "predict", "compression", "decoding", "applications", "checkpoints", "recovery",
         "tracking_server", "many_workers")  # fmt: skip


def run_all(names: list[str], options: list[str]) -> list[Figure]:
    """Run benchmarks as scripts of their own and return their required figures."""
    figures = []
    for name in names:
        out = RESULTS / f"{name}.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, f"benchmarks/{name}.py", f"--json={out}", *options]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise SystemExit(f"benchmarks/{name}.py failed")
        figures += [Figure(**figure) for figure in json.loads(out.read_text())["figures"]]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"which, of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--repeat", help="rounds of each (default: each one's own)")
    parser.add_argument("--patience", help="seconds that a timing waits for a quiet machine (default: 180)")
    given = parser.parse_args()
    options = [f"--{name}={value}" for name in ("repeat", "patience") if (value := getattr(given, name))]
    figures = run_all(given.names or list(NAMES), options)
    print(table([("required", "is", "target", ""), *(figure.cells() for figure in figures)]))
    missed = sum(not figure.passes for figure in figures)
    print(f"\n{len(figures) - missed} of {len(figures)} required figures reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
