import gzip
import json

import pytest
import torch

from shoal.storage.run_folder import PROFILE, RunFolder
from shoal.training.profiler import TABLE, TRACE, StepProfiler

CPU = torch.device("cpu")


def trace(folder, made):
    profiler = StepProfiler(folder, CPU, made)
    for _ in range(made):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step()
    profiler.close()
    events = json.loads(gzip.decompress(folder.read(f"{PROFILE}/{TRACE}")))["traceEvents"]
    return sorted({event["name"] for event in events if event["name"].startswith("ProfilerStep")})


@pytest.mark.parametrize(("made", "traced"), [(40, range(10, 16)), (13, range(6, 12)), (4, range(2, 4))])
def test_some_steps_are_traced_and_their_operators_listed(tmp_path, made, traced):
    folder = RunFolder(str(tmp_path))
    found = trace(folder, made)
    assert {f"ProfilerStep#{step}" for step in traced} <= set(found)
    assert len(found) <= len(traced) + 1  # a trace that is cut off holds the step that was begun
    assert "aten::mm" in folder.read(f"{PROFILE}/{TABLE}").decode()
