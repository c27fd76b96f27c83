"""Variants are saved, loaded again as any model, and measured beside the model that they were made of."""

import json

import numpy as np
import pytest
import torch

from shoal.compression import gate, int8, magnitude, measure
from shoal.errors import ModelError
from shoal.export import folder as folders
from shoal.export.module import arrays_of
from shoal.export.writer import Writer
from shoal.inference.predictor import Predictor
from shoal.inference.rows import as_rows
from shoal.storage.records import LatencyRecord, MeasuredModel


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(measure, "CALLS", 3)


def test_a_pruned_model_is_trained_on_and_loads_as_any_other(subject, table):
    one = subject(table, label="y")
    made = one.pruned(0.5, epochs=20)
    original, variant, flips, agreement = made.measure(one.rows)
    assert variant.parameters < original.parameters * 0.6
    assert variant.bytes < original.bytes
    assert made.steps > 0
    assert variant.metrics["accuracy"] > 0.9  # of a model that had never been trained
    assert original.metrics["accuracy"] < variant.metrics["accuracy"]
    assert 0 < flips < 1
    assert -1 <= agreement < 1
    assert original.flops == 2 * (3 * 64 + 64 * 32 + 32 * 2)
    assert variant.flops < original.flops
    weights, activations = (
        4 * original.parameters,
        4 * 64 * (64 + 64),
    )  # of 64 rows: a layer's outputs, and of ReLU
    assert original.memory_bytes == weights + activations
    again = Predictor.load(made.saved.folder)
    rows = one.rows.some
    assert np.array_equal(again.outputs(rows), made.saved.predictor.outputs(rows))
    assert again.golden is not None
    described = json.loads((made.saved.folder / "description.json").read_text())
    assert described["shapes"]["layers.0.weight"][0] == 32


def test_without_epochs_nothing_is_trained(subject, table):
    one = subject(table, label="y")
    made = one.pruned(0.5, epochs=0)
    assert made.steps == 0


def test_zeros_stay_zeros_through_fine_tuning(subject, table):
    one = subject(table, label="y")
    made = one.pruned(0.75, is_structured=False)
    weight = made.predictor.model.layers[2].weight
    assert (weight == 0).double().mean().item() == pytest.approx(0.75, abs=0.01)
    before = one.predictor.model.layers[2].weight
    assert not torch.equal(weight[weight != 0], before[weight != 0])
    assert weight.shape == before.shape


@pytest.mark.parametrize(("kind", "share"), [("bf16", 0.5), ("int8-weight-only", 0.27)])
def test_narrow_weights_take_fewer_bytes_and_are_computed_with_in_float32(subject, table, kind, share):
    one = subject(table, label="y", settings={"width": 256})
    made = one.maker.stored_narrow(one.saved, kind)
    original, variant, *_ = made.measure(one.rows)
    assert variant.bytes == pytest.approx(original.bytes * share, rel=0.04)
    assert next(made.predictor.model.parameters()).dtype == torch.float32
    torch.testing.assert_close(
        made.saved.predictor.outputs(one.rows.some),
        one.predictor.outputs(one.rows.some),
        rtol=0.05,
        atol=0.02,
    )


@pytest.mark.parametrize(
    "task",
    [
        "classification",
        pytest.param("regression", marks=pytest.mark.long),
        pytest.param("multilabel_classification", marks=pytest.mark.long),
    ],
)
def test_int8_of_linear_layers_answers_nearly_the_same(subject, tmp_path, task):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(100, 32)).astype(np.float32)
    y = {"classification": x[:, 0] > 0, "regression": 7 + 3 * x[:, 0]}.get(task, x[:, 0] > 0)
    rows = {"x": x, "y": y.astype(np.float32 if task == "regression" else np.int64)}
    labels = "y"
    if task == "multilabel_classification":
        rows["z"], labels = (x[:, 1] > 0).astype(np.int64), ("y", "z")
    np.savez(tmp_path / "rows.npz", **rows)
    one = subject(f"npz:{tmp_path}/rows.npz", task, settings={"width": 512}, label=labels)
    made = one.maker.as_int8(one.saved)
    original, variant, flips, agreement = made.measure(one.rows)
    assert variant.bytes < 0.35 * original.bytes
    for name, value in made.original.metrics(one.rows.blocks()).items():
        assert value == pytest.approx(original.metrics[name])
    expected = measured_by_torch(one)
    for name, value in original.metrics.items():
        assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert variant.metrics["loss"] == pytest.approx(original.metrics["loss"], rel=0.05)
    assert variant.metrics["loss"] != original.metrics["loss"]
    assert (flips is None) == (task != "classification")
    assert_used_as_any_model(one, made, tmp_path)


def assert_used_as_any_model(one, made, tmp_path):
    """It predicts the same by pyfunc, by ONNX Runtime from raw columns, and as it was measured."""
    from mlflow import pyfunc

    rows = one.rows.some
    predictor = Predictor.load(made.saved.folder)
    assert predictor.golden is not None
    assert made.weights.read_bytes() == (made.folder / "data" / "weights" / "model.onnx").read_bytes()
    expected = predictor.answers(rows)
    raw = as_rows(rows, predictor.transform)
    found = pyfunc.load_model(str(made.folder)).predict(raw)
    for name, values in expected.items():
        np.testing.assert_allclose(np.stack(found[name]), np.stack(list(values)), rtol=1e-6)
    with Writer(predictor, made.saved.folder, tmp_path / "export", "it", rows) as writer:
        writer.write("onnx")
        writer.compare(one.rows.blocks())
    exported = folders.load(tmp_path / "export" / "onnx")  # whose golden rows are answered as it answers
    assert exported.interface.opset["ai.onnx"] >= 11
    arrays = arrays_of(rows, predictor.transform, exported.interface.inputs)
    answers = dict(zip(expected, exported.run(arrays), strict=True))
    for name, values in expected.items():
        np.testing.assert_allclose(answers[name], np.stack(list(values)), rtol=1e-5, atol=1e-6)


def measured_by_torch(one):
    from shoal.inference.evaluation import evaluate_on_blocks

    return evaluate_on_blocks(one.predictor, one.rows.blocks()).results()


def test_int8_of_convolutions_is_calibrated_on_training_rows(subject, images, tmp_path):
    one = subject(images, name="resnet", settings={"width": 16, "depth": 8}, label="y")
    made = one.maker.as_int8(one.saved)
    original, variant, *_ = made.measure(one.rows)
    assert "static" in made.method
    assert variant.bytes < 0.6 * original.bytes
    assert variant.metrics["loss"] == pytest.approx(original.metrics["loss"], rel=0.1)
    assert_used_as_any_model(one, made, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("name", "task"), [("gpt", "causal_lm"), ("bert", "masked_lm")])
def test_language_models_are_pruned_and_quantized(subject, text, name, task):
    one = subject(text, task, name, settings={"width": 32}, context=16)
    made = one.pruned(0.5)
    quantized = one.maker.as_int8(made.saved, made.name)
    original, variant, flips, _ = quantized.measure(one.rows)
    assert flips is None
    assert original.metrics["loss"] == pytest.approx(measured_by_torch(one)["loss"], rel=1e-4)
    assert variant.parameters < original.parameters
    assert variant.metrics["loss"] == pytest.approx(made.variant.metrics(one.rows.blocks())["loss"], rel=0.05)


def measured(latency, **metrics):
    found = {str(rows): LatencyRecord(p50_ms=ms, p99_ms=ms) for rows, ms in latency.items()}
    return MeasuredModel(runtime="torch", metrics=metrics, bytes=1, parameters=1, zeros=0, latency=found)


def test_the_gate_names_what_is_worse():
    assert gate.too_bad("accuracy", 0.9, 0.895, 0.01, {}) is None
    assert "accuracy fell by 0.02, from 0.9 to 0.88" in gate.too_bad("accuracy", 0.9, 0.88, 0.01, {})
    assert gate.too_bad("loss", 2.0, 2.01, 0.01, {}) is None
    assert "loss rose by 50.00%" in gate.too_bad("loss", 2.0, 3.0, 0.01, {})
    assert gate.too_bad("loss", 2.0, float("nan"), 0.01, {}) is not None
    original = measured({1: 1.0, 64: 4.0})
    assert gate.too_slow(original, measured({1: 1.04, 64: 1.0})) is None
    assert "0.5" not in (slow := gate.too_slow(original, measured({1: 1.1, 64: 1.0})) or "")
    assert "1.1 ms instead of 1 ms for 1 row" in slow


def test_models_that_have_nothing_to_compress_are_refused_by_name(subject, table):
    one = subject(table, label="y")
    one.predictor.model = torch.nn.Sequential(torch.nn.Flatten())
    with pytest.raises(ModelError, match="neither linear layers nor convolutions"):
        int8.check_model(one.predictor, "mine")
    with pytest.raises(ModelError, match="nothing to prune"):
        magnitude.check_model(one.predictor.model, "mine")


def test_latencies_are_of_the_calls_themselves():
    def slow():
        sum(range(200_000))

    quick, long = measure.latencies([lambda: None, slow])
    assert 0 < quick.p50_ms < long.p50_ms <= long.p99_ms


def test_the_instructions_of_a_cpu_are_read(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("model name\t: x\nflags\t\t: avx2 avx_vnni sse\n")
    monkeypatch.setattr(measure, "CPUINFO", tmp_path / "cpuinfo")
    assert measure.isa() == "avx_vnni"
    monkeypatch.setattr(measure, "CPUINFO", tmp_path / "nothing")
    assert measure.isa() == "none"
