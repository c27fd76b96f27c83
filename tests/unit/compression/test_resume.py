"""The same compression again, after it was killed: what is finished stays, what is not is made."""

from pathlib import Path

import pytest

from shoal.compression import measure
from shoal.compression.config import CompressConfig
from shoal.compression.variants import Maker
from shoal.storage.run_folder import RunFolder
from shoal.workflows.compress import variants_of
from shoal.workflows.compression_runs import Subject


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(measure, "CALLS", 3)


def test_what_a_killed_job_finished_is_not_made_again(subject, table, tmp_path):
    one = subject(table, label="y")
    about = Subject("the model", "compress-m", "mlp", one.predictor, one.rows)
    steps = []

    def begin(again, **changes):
        options = {"prune": 0.5, "quantize": "bf16", "epochs": 2} | changes
        config = CompressConfig(storage_path=str(tmp_path / "runs"), compress=options)
        maker = Maker(one.saved, one.rows, tmp_path / again)
        return variants_of(maker, about, config, lambda status: steps.append(status.step))

    killed = begin("first")
    name, first = next(killed)
    killed.close()  # before the second variant
    assert name == "prune-0.5"
    assert steps[-1] == first.steps > 0
    folder = RunFolder(first.run_folder)
    weights = Path(first.run_folder) / first.file
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    assert not folder.files("checkpoints")

    steps.clear()
    found = dict(begin("second"))
    assert not steps
    assert found["prune-0.5"] == first
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before
    quantized = found["prune-0.5-bf16"]
    assert quantized.variant.parameters == first.variant.parameters
    assert quantized.variant.bytes < first.variant.bytes

    name, other = next(begin("third", epochs=1))
    assert other.run_folder != first.run_folder
    assert other.steps == first.steps / 2
    assert weights.read_bytes() == before[0]


def test_each_step_is_applied_to_all_that_the_step_before_has_made(subject, table, tmp_path):
    one = subject(table, label="y")
    about = Subject("the model", "compress-m", "mlp", one.predictor, one.rows)
    options = {"distill": {"depth": 1}, "prune": "0.25,0.5", "quantize": "int8,bf16", "epochs": 0}
    config = CompressConfig(storage_path=str(tmp_path / "runs"), compress=options)
    maker = Maker(one.saved, one.rows, tmp_path / "variants")
    found = dict(variants_of(maker, about, config, lambda status: None))
    student, *pruned = "distill-depth-1", "distill-depth-1-prune-0.25", "distill-depth-1-prune-0.5"
    assert list(found) == [student, *(name + end for name in pruned for end in ("", "-int8", "-bf16"))]
    parameters = [found[name].variant.parameters for name in (student, *pruned)]
    assert sorted(set(parameters), reverse=True) == parameters
    for name in pruned:
        assert found[f"{name}-bf16"].variant.parameters == found[name].variant.parameters
        assert found[f"{name}-int8"].attribution_agreement is None
        assert found[f"{name}-int8"].variant.memory_bytes is None


@pytest.mark.parametrize("method", ["structured", "magnitude"])
def test_a_gradual_pruning_goes_on_from_the_share_before(subject, table, tmp_path, method):
    one = subject(table, label="y", settings={"width": 64, "depth": 2})
    about = Subject("the model", "compress-m", "mlp", one.predictor, one.rows)
    options = {"prune": "0.25,0.5,0.75", "gradual": True, "epochs": 1, "method": method, "quantize": "bf16"}
    config = CompressConfig(storage_path=str(tmp_path / "runs"), compress=options)
    found = dict(variants_of(one.maker, about, config, lambda status: None))
    short = "prune" if method == "structured" else method
    assert list(found) == [f"{short}-{share}{kind}" for share in (0.25, 0.5, 0.75) for kind in ("", "-bf16")]
    pruned = [variant for name, variant in found.items() if not name.endswith("bf16")]
    assert pruned[1].method.startswith("gradual pruning of 50%")
    assert not pruned[0].method.startswith("gradual")
    if method == "magnitude":
        assert [round(one.variant.zeros / one.variant.parameters, 1) for one in pruned] == [0.2, 0.5, 0.7]
        return
    hidden = [(64, 32), (48, 32), (32, 16), (16, 8)]  # 24 of 32 would be an odd width
    sizes = [3 * a + a + a * b + b + b * 2 + 2 for a, b in hidden]
    assert [one.original.parameters for one in pruned] == sizes[:1] * 3
    assert [one.variant.parameters for one in pruned] == sizes[1:]
