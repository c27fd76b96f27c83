"""Lets a job import the shoal beside it: after `ray job submit` that is the uploaded one."""

import os
import sys
from pathlib import Path

_platform = str(Path(__file__).resolve().parents[1] / "platform")
sys.path.insert(0, _platform)
_inherited = os.environ.get("PYTHONPATH", "")
if _platform not in _inherited.split(os.pathsep):
    # Workers of a Ray cluster started here, and the process that verifies the model, inherit it.
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (_platform, _inherited) if part)
