"""The units of deploy/systemd are ones that systemd knows every key of, and end as jobs need it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))


def complaints(text: str, folder: Path) -> str:
    """Return what systemd says of a unit whose program is one that is here."""
    unit = folder / "shoal-check.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    return "\n".join(line for line in done.stderr.splitlines() if unit.name in line)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_knows_every_key(unit, tmp_path):
    assert complaints(unit.read_text(), tmp_path) == ""
    assert "Restrat" in complaints(unit.read_text().replace("Restart=", "Restrat="), tmp_path)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_service_comes_back_and_has_time_to_end(unit):
    keys = dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"\w+=", line))
    assert keys["Restart"] == "always"
    assert int(keys["TimeoutStopSec"]) >= 45
    assert int(keys["LimitNOFILE"]) >= 8192
    program = keys["ExecStart"].split()[0].removeprefix("/home/shoal/shoal/")
    assert program == ".venv/bin/ray" or (FOLDER.parents[1] / program).is_file()
    assert "--block" in keys["ExecStart"] or "tracking" in unit.stem
