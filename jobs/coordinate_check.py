"""Check that training depends on no width: python jobs/coordinate_check.py [CONFIG.yaml] [dotted.key=value ...]"""

import argparse
import sys

import _path  # noqa: F401  (first: it finds shoal)
from shoal.config.loading import describe, load
from shoal.errors import VerificationError
from shoal.runs.resolve import resolve_run_folder
from shoal.terminal.errors import file_and_settings, run
from shoal.terminal.tables import table
from shoal.workflows.coordinate_check import CoordinateCheck, CoordinateConfig, check_coordinates, log_check

SHOWN = 30


def main(arguments: list[str]) -> int:
    """Train a few steps at every width, print how far activations moved, record it."""
    parser = argparse.ArgumentParser(
        usage="python jobs/coordinate_check.py [CONFIG.yaml] [dotted.key=value ...]",
        description="Train a few steps at several widths and tell whether activations move alike at all of them, "
        "as they do under model.parametrization=mup. Exit code: 0 if they do, 1 if they do not.",
        epilog="keys (type, default, meaning):\n" + describe(CoordinateConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    given = parser.parse_args(arguments)
    config = load(CoordinateConfig, *file_and_settings(parser, given.settings))
    folder = resolve_run_folder(config)
    print(f"widths  {', '.join(map(str, config.widths))}: {config.check.steps} steps each", flush=True)
    checked = check_coordinates(config, lambda width: print(f"  width {width} is trained", flush=True))
    print(exponent_table(checked))
    found = checked.verdict
    print(f"{'PASS' if found.passes else 'FAIL'}: {found} (at most {config.check.tolerance:g} either way)")
    result = log_check(checked, folder)
    if not result["is_delivered"]:
        print(
            f"warning: MLflow at {result['tracking_uri']} does not answer; later: python jobs/sync.py {folder.uri}"
        )
    print(f"result: {folder.uri}/result.json", flush=True)
    if not found.passes:
        raise VerificationError(
            f"what {found.module} puts out changes by width^{found.exponent:.2f}, and one learning rate serves every "
            f"width only if |k| is at most {config.check.tolerance:g}: {checked.remedy}"
        )
    return 0


def exponent_table(checked: CoordinateCheck) -> str:
    """Lay out each module's exponent and its change at both ends; of many modules those farthest from 0."""
    exponents, widths = checked.exponents, checked.config.widths
    farthest = sorted(exponents, key=lambda module: -abs(exponents[module]))[:SHOWN]
    rows = [
        ("module", f"k ({checked.config.model.parametrization})", f"at {widths[0]}", f"at {widths[-1]}"),
        *(
            (
                module,
                f"{k:.2f}",
                *(f"{checked.change(module, width):.3g}" for width in (widths[0], widths[-1])),
            )
            for module, k in exponents.items()
            if module in farthest
        ),
    ]
    lines = ["how far each module's output moves, mean |x_t - x_0| ~ width^k", table(rows)]
    if len(exponents) > SHOWN:
        lines.append(f"  and {len(exponents) - SHOWN} with smaller k: see result.json")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
