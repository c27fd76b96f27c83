import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save_file

from shoal.data.config import DataConfig
from shoal.data.labels import Label
from shoal.data.preprocessing import Transform
from shoal.errors import ModelError
from shoal.inference.description import describe_model
from shoal.models.config import ModelConfig
from shoal.models.pretrained import NOT_LOADED
from shoal.models.registry import build_model, find_builder
from shoal.models.size import measure_size
from shoal.registry.package import REQUIREMENTS, _named_code, _requirements
from shoal.tasks.objective import ObjectiveConfig
from shoal.training.checkpoint.store import _weights_bytes

transformers = pytest.importorskip("transformers")

VOCABULARY, CONTEXT = 40, 12


def config_of(kind, width=32, depth=2, **rest):
    return ModelConfig(name=f"huggingface:{kind}", width=width, depth=depth, **rest)


def make(kind, task, outputs=VOCABULARY, inputs=(CONTEXT,), vocabulary=VOCABULARY, seed=0, **rest):
    model = build_model(config_of(kind, **rest), inputs, outputs, seed, vocabulary, task)
    return model.eval()


def make_image_model(kind, inputs, task="image_classification", **rest):
    return make(kind, task, 5, inputs, 0, **rest)


def tokens(rows=3, length=CONTEXT, seed=0):
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def saved(model, folder):
    model.inner.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "task", "outputs", "shape"),
    [
        ("gpt2", "causal_lm", VOCABULARY, (3, CONTEXT, VOCABULARY)),
        ("llama", "causal_lm", VOCABULARY, (3, CONTEXT, VOCABULARY)),
        ("bert", "masked_lm", VOCABULARY, (3, CONTEXT, VOCABULARY)),
        ("bert", "sequence_classification", 4, (3, 4)),
        ("gpt2", "sequence_classification", 4, (3, 4)),
    ],
)
def test_token_ids_become_logits_as_the_task_wants_them_and_every_parameter_gets_a_gradient(
    kind, task, outputs, shape
):
    model = make(kind, task, outputs)
    logits = model(tokens())
    assert logits.shape == shape
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("kind", "inputs"), [("vit", (1, 8, 8)), ("vit", (3, 32, 32)), ("resnet", (3, 32, 32))]
)
def test_images_become_logits_and_every_parameter_gets_a_gradient(kind, inputs):
    model = make_image_model(kind, inputs)
    logits = model(torch.randn(2, *inputs))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_wrapped_model_computes_what_transformers_own_computes():
    model = make("llama", "causal_lm")
    torch.manual_seed(5)
    theirs = transformers.LlamaForCausalLM(model.inner.config).eval()
    theirs.load_state_dict(model.inner.state_dict())
    x = tokens()
    assert torch.equal(model(x), theirs(input_ids=x).logits)


def test_width_and_depth_are_the_hidden_size_and_the_layers_whatever_they_are_called():
    for kind in ("gpt2", "llama", "distilbert"):
        task = "masked_lm" if kind == "distilbert" else "causal_lm"
        model = make(kind, task, width=128, depth=3)
        config = model.inner.config
        assert (config.hidden_size, config.num_hidden_layers, len(model.blocks)) == (128, 3, 3)
        layers = [m for m in model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
        assert 4 * 128 in {size for layer in layers for size in layer.weight.shape}


@pytest.mark.parametrize(
    ("kind", "width", "heads"),
    [("gpt2", 128, 2), ("gpt2", 50, 1), ("gpt2", 96, 2), ("llama", 512, 4), ("mistral", 512, 4)],
)
def test_heads_keep_their_own_size_as_nearly_as_the_width_allows(kind, width, heads):
    config = make(kind, "causal_lm", width=width, depth=1).inner.config
    assert config.num_attention_heads == heads
    if kind == "mistral":  # four queries to a key, as in its own config
        assert config.num_key_value_heads == 1


def test_what_is_given_in_args_beats_what_follows_from_the_width_under_either_name():
    for args in ({"n_head": 8, "n_inner": 48}, {"num_attention_heads": 8, "n_inner": 48}):
        model = make("gpt2", "causal_lm", args=args)
        assert model.inner.config.n_head == 8
        assert model.blocks[0].mlp.c_fc.weight.shape == (32, 48)


def test_an_architecture_in_stages_has_depth_blocks_in_each_and_width_channels_in_the_first():
    config = make_image_model("resnet", (3, 32, 32), width=16, depth=3).inner.config
    assert (list(config.depths), list(config.hidden_sizes), config.embedding_size) == (
        [3, 3, 3, 3],
        [16, 32, 64, 128],
        4,
    )


@pytest.mark.parametrize(
    ("inputs", "patch"), [((1, 8, 8), 1), ((3, 32, 32), 4), ((3, 224, 224), 16), ((3, 28, 56), 2)]
)
def test_an_image_is_cut_into_at_least_8_patches_a_side(inputs, patch):
    model = make_image_model("vit", inputs, depth=1)
    assert model.inner.config.patch_size == patch
    assert model(torch.zeros(1, *inputs)).shape == (1, 5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_changes_nothing_at_other_positions(kind):
    model, x = make(kind, "masked_lm"), tokens(length=7)
    padded = F.pad(x, (0, CONTEXT - 7))
    torch.testing.assert_close(model(padded)[:, :7], model(x), rtol=0, atol=1e-5)


def test_padding_changes_nothing_in_a_classification_and_a_row_of_nothing_else_is_finite():
    for kind in ("bert", "gpt2"):
        model, x = make(kind, "sequence_classification", 4), tokens(length=7)
        torch.testing.assert_close(model(F.pad(x, (0, CONTEXT - 7))), model(x), rtol=0, atol=1e-5)
        assert model(torch.zeros(2, CONTEXT, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_a_causal_model_sees_no_later_token(kind):
    model, x = make(kind, "causal_lm"), tokens()
    changed = x.clone()
    changed[:, 6:] = tokens(seed=1)[:, 6:]
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ModelError, match="13 tokens were passed to a model with a context of 12"):
        make("gpt2", "causal_lm")(tokens(length=13))


def test_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    first = make("gpt2", "causal_lm", seed=7).state_dict()
    torch.manual_seed(2)
    again, other = (make("gpt2", "causal_lm", seed=seed).state_dict() for seed in (7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["inner.lm_head.weight"], other["inner.lm_head.weight"])


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "causal_lm"), ("bert", "masked_lm")])
def test_the_loss_of_a_batch_halves_in_a_few_steps(kind, task):
    model, x = make(kind, task), tokens()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("kind", "task"), [("gpt2", "causal_lm"), ("bert", "masked_lm"), ("llama", "causal_lm")]
)
def test_weights_tied_ones_too_go_through_a_checkpoint_into_another_model(kind, task):
    model, other = make(kind, task, seed=0), make(kind, task, seed=1)
    other.load_state_dict(load(_weights_bytes(model.state_dict())))
    assert torch.equal(model(tokens()), other(tokens()))
    tied = [model.inner.get_output_embeddings().weight, model.inner.get_input_embeddings().weight]
    assert (tied[0] is tied[1]) == (kind != "llama")


def test_flops_are_counted():
    model = make("gpt2", "causal_lm", depth=1, args={"n_head": 2})
    size = measure_size(model, torch.zeros((1, CONTEXT), dtype=torch.int64))
    linear = 2 * CONTEXT * (12 * 32 * 32 + 32 * VOCABULARY)
    assert size.flops_per_sample == linear + 2 * 2 * CONTEXT * CONTEXT * 32


@pytest.mark.parametrize(
    ("kind", "task", "args", "pieces"),
    [
        ("gtp2", "causal_lm", {}, ["no architecture 'gtp2'", "did you mean 'gpt2'"]),
        ("gpt2", "causal_lm", {"n_heads": 2}, ["'n_heads'", "did you mean 'n_head'"]),
        (
            "gpt2",
            "causal_lm",
            {"n_positions": CONTEXT - 1},
            [f"model.args.n_positions={CONTEXT - 1}", f"data.context={CONTEXT - 1} or less"],
        ),
        (
            "bert",
            "masked_lm",
            {"max_position_embeddings": 2},
            ["model.args.max_position_embeddings=2", f"data.context={CONTEXT} tokens"],
        ),
        ("gpt2", "masked_lm", {}, ["no AutoModelForMaskedLM of 'gpt2'"]),
        ("bert", "image_classification", {}, ["samples have shape", "text data"]),
    ],
)
def test_what_transformers_cannot_build_is_refused_with_the_reason(kind, task, args, pieces):
    inputs = (3, 8) if task == "image_classification" else (CONTEXT,)
    with pytest.raises(ModelError) as caught:
        make(kind, task, inputs=inputs, args=args)
    assert all(piece in str(caught.value) for piece in pieces), str(caught.value)


def test_rows_of_numbers_are_refused_as_they_are_not_token_ids():
    with pytest.raises(ModelError, match="rows of 12 numbers, which are not token ids"):
        make("bert", "classification", vocabulary=0)


def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", None)
    with pytest.raises(ModelError, match=r"pip install 'shoal\[huggingface\]'"):
        find_builder("huggingface:gpt2")


def test_a_model_starts_from_what_save_pretrained_wrote_with_its_own_config(tmp_path):
    trained = make(
        "llama",
        "causal_lm",
        args={"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    )
    model = make("llama", "causal_lm", seed=1, init=saved(trained, tmp_path))
    assert (model.inner.config.num_attention_heads, model.inner.config.rope_parameters["rope_theta"]) == (
        4,
        77.0,
    )
    assert torch.equal(model(tokens()), trained(tokens()))


def test_a_new_head_stays_as_initialised_and_is_named(tmp_path):
    trained = make("bert", "masked_lm")
    model = make("bert", "sequence_classification", 4, seed=1, init=saved(trained, tmp_path))
    fresh = make("bert", "sequence_classification", 4, seed=1)
    new, own, old = model.state_dict(), fresh.state_dict(), trained.state_dict()
    assert torch.equal(new["inner.classifier.weight"], own["inner.classifier.weight"])
    shared = [name for name in new if name.startswith("inner.bert.") and "pooler" not in name]
    assert len(shared) > 30
    assert all(torch.equal(new[name], old[name]) for name in shared)
    note = getattr(model, NOT_LOADED)
    assert "not there, left as initialized: " in note
    assert "inner.classifier.weight" in note


def test_a_context_shorter_than_the_saved_models_is_no_misfit(tmp_path):
    init = saved(make("bert", "masked_lm"), tmp_path)
    assert make("bert", "masked_lm", inputs=(8,), init=init)(tokens(length=8)).shape == (3, 8, VOCABULARY)


@pytest.mark.parametrize(
    ("rest", "pieces"),
    [
        ({"width": 64}, ["model.width=64", "set model.width=32 model.depth=2"]),
        ({"depth": 5}, ["model.depth=5", "set model.width=32 model.depth=2"]),
        ({"kind": "roberta"}, ["architecture 'bert'", "set model.name=huggingface:bert"]),
    ],
)
def test_a_config_that_contradicts_the_saved_one_is_refused_with_both_sizes(tmp_path, rest, pieces):
    init = saved(make("bert", "masked_lm"), tmp_path)
    with pytest.raises(ModelError) as caught:
        make(**{"kind": "bert", "task": "masked_lm", "init": init} | rest)
    assert all(piece in str(caught.value) for piece in pieces), str(caught.value)


@pytest.mark.parametrize(
    ("rest", "pieces"),
    [
        ({"vocabulary": 50, "outputs": 50}, ["word_embeddings.weight (40, 32) there, (50, 32) in the model"]),
        ({"inputs": (20,)}, ["position_embeddings.weight (12, 32) there, (20, 32) in the model"]),
    ],
)
def test_of_a_saved_model_what_fits_is_loaded_and_the_rest_named(tmp_path, rest, pieces):
    trained = make("bert", "masked_lm")
    model = make(**{"kind": "bert", "task": "masked_lm", "init": saved(trained, tmp_path), "seed": 1} | rest)
    note = getattr(model, NOT_LOADED)
    assert "of another shape, left as initialized: " in note
    assert all(piece in note for piece in pieces), note
    name = "inner.bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.state_dict()[name], trained.state_dict()[name])


@pytest.mark.parametrize("place", ["", "data/model", "model/data/model"])
def test_shoals_own_weights_are_found_in_a_checkpoint_a_saved_model_and_a_run_folder(tmp_path, place):
    for config, inputs, vocabulary, task in (
        (ModelConfig(width=8), (4,), 0, "classification"),
        (config_of("gpt2"), (CONTEXT,), VOCABULARY, "causal_lm"),
    ):
        outputs = vocabulary or 3
        trained = build_model(config, inputs, outputs, 0, vocabulary, task)
        folder = tmp_path / config.name.replace(":", "-") / place
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(_weights_bytes(trained.state_dict()))
        init = str(tmp_path / config.name.replace(":", "-"))
        model = build_model(config.model_copy(update={"init": init}), inputs, outputs, 1, vocabulary, task)
        pairs = zip(model.state_dict().values(), trained.state_dict().values(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_mup_keeps_its_scaling_and_takes_the_weights_as_they_are(tmp_path):
    config = ModelConfig(width=32, parametrization="mup", base_width=8)
    trained = build_model(config, (4,), 3, 0)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    model = build_model(config.model_copy(update={"init": str(tmp_path)}), (4,), 3, 1)
    assert torch.equal(model(torch.ones(2, 4)), trained(torch.ones(2, 4)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is no folder and no file"),
        ({}, r"holds no \*.safetensors"),
        (
            {"other": torch.zeros(2)},
            "holds none of the model's tensors: it has other, the model has layers.0.bias",
        ),
        (
            {"layers.0.weight": torch.zeros(8, 5)},
            r"'layers.0.weight' is of shape \(8, 5\) there and \(8, 4\)",
        ),
    ],
)
def test_a_folder_without_the_models_weights_is_refused(tmp_path, files, message):
    folder = tmp_path / "weights"
    if files is not None:
        folder.mkdir()
    if files:
        save_file(files, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        build_model(ModelConfig(width=8, init=str(folder)), (4,), 3, 0)


def test_weights_that_do_not_read_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="does not read"):
        build_model(ModelConfig(width=8, init=str(tmp_path)), (4,), 3, 0)


def test_a_trained_models_description_does_not_ask_for_the_weights_it_started_from():
    transform = Transform(columns=(), label=Label(name="target"))
    text = describe_model(ModelConfig(init="gone"), transform, "classification", DataConfig(), 0)
    assert '"init": null' in text


def test_a_saved_models_requirements_name_transformers_only_where_it_is_needed():
    assert _requirements("huggingface:gpt2", ObjectiveConfig()) == (*REQUIREMENTS, "transformers")
    assert _requirements("mlp", ObjectiveConfig()) == REQUIREMENTS
    assert _named_code("huggingface:gpt2", ObjectiveConfig(), None) == []
