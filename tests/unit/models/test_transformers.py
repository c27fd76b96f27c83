import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from shoal.errors import ModelError
from shoal.models.bert import BERT
from shoal.models.gpt import GPT
from shoal.models.size import measure_size
from shoal.models.transformer import Attention, Block, Rotation, head_count

VOCABULARY, CONTEXT, WIDTH, DEPTH, HEADS = 23, 12, 16, 2, 4
POSITIONS = pytest.mark.parametrize("positions", ["rotary", "learned"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gpt(context=CONTEXT, std=0.3, **args):
    """Weights so large that what a test changes shows in the logits."""
    model = GPT((context,), VOCABULARY, **({"width": WIDTH, "depth": DEPTH, "heads": HEADS} | args))
    return enlarged(model, std)


def bert(task="sequence_classification", outputs=3, **args):
    model = BERT((CONTEXT,), outputs, VOCABULARY, task, WIDTH, DEPTH, HEADS, **args)
    return enlarged(model, 0.3)


def enlarged(model, std):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def some_tokens(n=3, t=CONTEXT):
    return torch.randint(1, VOCABULARY, (n, t))


def torchs_own(block):
    """PyTorch's pre-norm encoder layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    attention, feed_forward = block.attention, block.feed_forward
    parts = (attention.query, attention.key, attention.value)
    layer.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts])
    layer.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts])
    layer.self_attn.out_proj = attention.project
    layer.linear1, layer.linear2 = feed_forward.up, feed_forward.down
    layer.norm1, layer.norm2 = block.attention_norm, block.feed_forward_norm
    return layer


# Blocks and attention.


def test_a_block_computes_what_pytorchs_own_pre_norm_layer_does_with_padding_and_with_a_causal_mask():
    x = torch.randn(2, 5, WIDTH)
    there = torch.tensor([[True] * 5, [True, True, True, False, False]])
    encoder = enlarged(Block(WIDTH, HEADS, dropout=0.0, causal=False), 0.3)
    expected = torchs_own(encoder)(x, src_key_padding_mask=~there)
    assert torch.allclose(encoder(x, mask=there[:, None, None, :])[there], expected[there], atol=1e-5)
    decoder = enlarged(Block(WIDTH, HEADS, dropout=0.0, causal=True), 0.3)
    expected = torchs_own(decoder)(x, src_mask=nn.Transformer.generate_square_subsequent_mask(5))
    assert torch.allclose(decoder(x), expected, atol=1e-5)


def test_attention_takes_its_scale_from_the_attribute():
    attention = enlarged(Attention(WIDTH, HEADS, dropout=0.0, causal=False), 0.3)
    assert type(attention.attention_scale) is float
    assert attention.attention_scale == 1 / math.sqrt(WIDTH / HEADS)
    attention.attention_scale = 0.0  # every key weighs the same
    x = torch.randn(2, 5, WIDTH)
    expected = attention.project(attention.value(x).mean(dim=1, keepdim=True)).expand(2, 5, WIDTH)
    assert torch.allclose(attention(x), expected, atol=1e-5)


def test_parts_of_the_heads_add_up_to_the_whole_attention_as_tensor_parallelism_splits_it():
    whole, x = enlarged(Attention(WIDTH, HEADS, dropout=0.0, causal=True), 0.3), torch.randn(2, 5, WIDTH)
    total = torch.zeros_like(x)
    for rows in (slice(0, 4), slice(4, 16)):  # one head, and three
        part = Attention(WIDTH, HEADS, dropout=0.0, causal=True)
        for name in ("query", "key", "value"):
            getattr(part, name).weight = nn.Parameter(getattr(whole, name).weight[rows])
            getattr(part, name).bias = nn.Parameter(getattr(whole, name).bias[rows])
        part.project.weight = nn.Parameter(whole.project.weight[:, rows])
        part.project.bias = None
        total += part(x)
    assert torch.allclose(total + whole.project.bias, whole(x), atol=1e-5)


def test_dropout_acts_on_attention_weights_in_training_only():
    attention, x = Attention(WIDTH, HEADS, dropout=0.5, causal=False), torch.randn(2, 5, WIDTH)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


# Rotary positions.


def test_rotation_multiplies_pair_i_as_a_complex_number_by_the_angle_of_its_position():
    x = torch.randn(1, 1, 3, 8)
    turned = Rotation(torch.tensor([0, 1, 7]), head_dim=8, context=8)(x)
    for row, position in enumerate((0, 1, 7)):
        for pair in range(4):
            angle = position * 10000 ** (-2 * pair / 8)
            expected = complex(x[0, 0, row, pair], x[0, 0, row, pair + 4]) * complex(
                math.cos(angle), math.sin(angle)
            )
            found = complex(turned[0, 0, row, pair], turned[0, 0, row, pair + 4])
            assert abs(found - expected) < 1e-5


def test_a_rotated_querys_product_with_a_rotated_key_depends_on_their_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8)

    def product(query_position, key_position):
        turned = (
            Rotation(torch.tensor([query_position]), 8, 128)(query),
            Rotation(torch.tensor([key_position]), 8, 128)(key),
        )
        return (turned[0] * turned[1]).sum().item()

    assert product(5, 2) == pytest.approx(product(105, 102), abs=1e-4)
    assert product(5, 2) == pytest.approx(product(3, 0), abs=1e-4)
    assert abs(product(5, 2) - product(5, 3)) > 1e-2


def test_rotation_computes_in_float32_whatever_it_is_given():
    x = torch.randn(1, 1, 1, 8).bfloat16()
    rotation = Rotation(torch.tensor([1001]), 8, 1024)
    assert torch.equal(rotation(x), rotation(x.float()).bfloat16())


# GPT.


@POSITIONS
def test_changing_later_tokens_does_not_change_earlier_logits(positions):
    model, tokens = gpt(positions=positions), some_tokens()
    changed = tokens.clone()
    changed[:, 7:] = (tokens[:, 7:] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=-1).min() > 1e-2


@POSITIONS
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_the_order_of_tokens_counts(kind, positions):
    tokens = some_tokens()
    model = gpt(positions=positions) if kind == "gpt" else bert("masked_lm", VOCABULARY, positions=positions)
    swapped = tokens[:, [1, 0, *range(2, CONTEXT)]]
    assert (model(tokens)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-3


@POSITIONS
@pytest.mark.parametrize(("given", "count"), [(1, 11), (5, 7), (12, 1), (5, 30), (20, 9)])
def test_generation_with_a_cache_is_the_argmax_without_one_token_by_token_within_and_beyond_the_context(
    positions, given, count
):
    model, tokens, found = gpt(positions=positions), some_tokens(t=given), []
    with model.output.register_forward_hook(lambda module, args, out: found.append(out)):
        generated = model.generate(tokens, count, temperature=0)
    start = 0
    for logits in found:
        if tokens.shape[1] - start > CONTEXT:
            start = tokens.shape[1] - CONTEXT // 2
        expected = model(tokens[:, start:])[:, -1]
        assert torch.allclose(logits, expected, atol=1e-4)
        tokens = torch.cat([tokens, expected.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(generated, tokens)
    assert generated.shape == (3, given + count)


def test_each_new_token_costs_one_position_and_a_full_context_half_of_it_anew():
    model, lengths = gpt(), []
    model.norm.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    model.generate(some_tokens(t=5), count=17, temperature=0)
    assert lengths == [5, *[1] * 7, CONTEXT // 2, *[1] * 6, CONTEXT // 2, 1]


def test_drawn_tokens_follow_the_softmax_of_the_logits_by_the_temperature():
    model, tokens = gpt(), some_tokens(n=1, t=4)
    drawn = model.generate(tokens.expand(20000, 4), 1, temperature=2.0)[:, -1]
    shares = torch.bincount(drawn, minlength=VOCABULARY) / 20000
    expected = (model(tokens)[0, -1] / 2).softmax(dim=-1)
    assert torch.allclose(shares, expected, atol=0.015)  # four standard errors of a share of 1/2


def test_top_k_draws_among_the_k_most_likely_tokens_alone():
    model, tokens = gpt(std=0.1), some_tokens(n=1, t=4)
    drawn = model.generate(tokens.expand(500, 4), 1, top_k=3)[:, -1]
    assert set(drawn.tolist()) == set(model(tokens)[0, -1].topk(3).indices.tolist())
    assert model.generate(tokens, 1, top_k=VOCABULARY + 1).shape == (1, 5)


def test_the_generator_decides_what_is_drawn():
    model, tokens = gpt(), some_tokens(t=4)
    first, again, other = (
        model.generate(tokens, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[:, :4], tokens)


@pytest.mark.parametrize("args", [{"temperature": -1.0}, {"top_k": 0}])
def test_a_draw_that_means_nothing_is_refused(args):
    with pytest.raises(ModelError, match="temperature is at least 0, top_k at least 1"):
        gpt().generate(some_tokens(t=4), 1, **args)


def test_tying_shares_one_parameter_between_embedding_and_output():
    tied, untied = gpt(), gpt(tied=False)
    assert tied.output.weight is tied.embedding.weight
    assert untied.output.weight is not untied.embedding.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == (
        VOCABULARY * WIDTH
    )


@pytest.mark.parametrize(("positions", "extra"), [("rotary", 0), ("learned", CONTEXT * WIDTH)])
def test_parameters_and_operations_of_gpt_are_those_counted_by_hand(positions, extra):
    size = measure_size(gpt(positions=positions), torch.zeros(1, CONTEXT, dtype=torch.int64))
    attention, feed_forward, norm = 4 * (16 * 16 + 16), (16 * 64 + 64) + (64 * 16 + 16), 2 * 16
    assert size.parameters == 23 * 16 + extra + 2 * (attention + feed_forward + 2 * norm) + norm
    assert size.bytes == 4 * size.parameters
    products = 2 * 12 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * (2 * 12 * 12 * 16)
    assert size.flops_per_sample == 2 * products + 2 * 12 * 16 * 23


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_initial_weights_have_the_spread_of_gpt_2(kind):
    model = (
        GPT((64,), 1000, width=128, depth=8, tied=False, positions="learned")
        if kind == "gpt"
        else BERT((64,), 1000, 1000, "masked_lm", width=128, depth=8)
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("project.weight", "down.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.03), name  # sqrt(2 * 8) is 4
        elif "norm" in name or name.startswith("transform.2"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name


def test_a_model_knows_nothing_at_first():
    model, tokens = GPT((CONTEXT,), VOCABULARY, WIDTH, DEPTH, HEADS), some_tokens(n=64)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.02)


def test_a_few_steps_teach_gpt_a_sequence_by_heart():
    model, tokens = GPT((CONTEXT,), VOCABULARY, WIDTH, DEPTH, HEADS), torch.arange(1, 13).repeat(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.generate(tokens[:1, :3], 9, temperature=0).tolist() == [list(range(1, 13))]


# BERT.


@POSITIONS
@pytest.mark.parametrize("task", ["sequence_classification", "masked_lm"])
def test_padding_changes_nothing_for_the_tokens_before_it(task, positions):
    model, tokens = bert(task, VOCABULARY, positions=positions), some_tokens(t=7)
    padded = F.pad(tokens, (0, CONTEXT - 7))
    expected, found = model(tokens), model(padded)
    assert torch.allclose(found[:, :7] if task == "masked_lm" else found, expected, atol=1e-4)


def test_bert_sees_to_both_sides():
    model, tokens = bert("masked_lm", VOCABULARY), some_tokens()
    changed = tokens.clone()
    changed[:, -1] = (tokens[:, -1] + 1) % VOCABULARY
    assert (model(tokens)[:, 0] - model(changed)[:, 0]).abs().max() > 1e-2


@pytest.mark.parametrize("task", ["sequence_classification", "masked_lm"])
def test_a_row_of_padding_alone_gives_finite_outputs_and_gradients_and_leaves_other_rows_alone(task):
    model, tokens = bert(task, VOCABULARY), some_tokens()
    expected = model(tokens)[1:]
    tokens[0] = 0
    found = model(tokens)
    assert torch.allclose(found[1:], expected, atol=1e-5)
    found.sum().backward()
    assert all(torch.isfinite(tensor).all() for tensor in [found, *(p.grad for p in model.parameters())])


def test_a_row_is_classified_by_the_mean_over_its_tokens():
    model, tokens = bert(), some_tokens(n=2)
    tokens[1, 4:] = 0
    hidden = []
    model.norm.register_forward_hook(lambda module, args, out: hidden.append(out))
    found = model(tokens)
    means = torch.stack([hidden[0][0].mean(dim=0), hidden[0][1, :4].mean(dim=0)])
    assert found.shape == (2, 3)
    assert torch.allclose(found, model.output(means), atol=1e-5)


def test_the_output_of_the_masked_language_model_is_tied_to_the_embedding_and_called_as_a_module():
    model, called = bert("masked_lm", VOCABULARY), []
    model.output.register_forward_pre_hook(lambda module, args: called.append(args[0].shape))
    assert model.output.weight is model.embedding.weight
    assert model(some_tokens(n=2)).shape == (2, CONTEXT, VOCABULARY)
    assert called == [(2, CONTEXT, WIDTH)]


@pytest.mark.parametrize(
    ("task", "outputs", "head"),
    [("masked_lm", 23, (16 * 16 + 16) + 2 * 16 + 23), ("sequence_classification", 3, 3 * 16 + 3)],
)
@pytest.mark.parametrize(("positions", "extra"), [("rotary", 0), ("learned", CONTEXT * WIDTH)])
def test_parameters_of_bert_are_those_counted_by_hand(task, outputs, head, positions, extra):
    block = 4 * (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16) + 2 * 2 * 16
    count = sum(parameter.numel() for parameter in bert(task, outputs, positions=positions).parameters())
    assert count == 23 * 16 + extra + 2 * block + 2 * 16 + head


# Both.


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_bfloat16_autocast_gives_the_same_logits_to_its_precision_and_gradients(kind):
    model, tokens = gpt(std=0.1) if kind == "gpt" else bert(), some_tokens()
    expected = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
    assert found.dtype is torch.bfloat16
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()
    found.float().logsumexp(dim=-1).sum().backward()
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_int32_tokens_mean_what_int64_tokens_do(kind):
    model, tokens = gpt() if kind == "gpt" else bert(), some_tokens()
    assert torch.equal(model(tokens.int()), model(tokens))


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_more_tokens_than_the_context_are_refused(kind):
    model = gpt() if kind == "gpt" else bert()
    with pytest.raises(
        ModelError, match="13 tokens were passed to a model with a context of 12: pass at most 12"
    ):
        model(some_tokens(t=13))


@POSITIONS
def test_blocks_sharded_by_fsdp_in_bfloat16_keep_the_cache_and_exact_rotations(positions, tmp_path):
    """FSDP casts and copies what it hands to a block; see Rotation and KeyValueCache."""
    model, tokens = gpt(positions=positions), some_tokens(t=4)
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    seen = []
    try:
        for block in model.blocks:
            block.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["rotation"]), with_kwargs=True
            )
            fully_shard(block, mp_policy=MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.float32))
        found = model.generate(tokens, 6, temperature=0)
        logits = model(found[:, :-1])[:, 3:]
    finally:
        distributed.destroy_process_group()
    assert all(rotation is None or rotation.cos.dtype is torch.float32 for rotation in seen)
    chosen = logits.gather(2, found[:, 4:, None]).squeeze(2)
    assert (logits.amax(dim=2) - chosen).max() < 0.05 * logits.std()  # bfloat16 may tell near ties apart


@pytest.mark.parametrize(
    ("width", "heads", "rotates", "expected"),
    [
        (32, None, True, 1),
        (64, None, True, 1),
        (127, None, False, 1),
        (768, None, True, 12),
        (48, 8, True, 8),
    ],
)
def test_there_is_one_head_for_each_64_of_the_width_by_default(width, heads, rotates, expected):
    assert head_count(width, heads, rotates) == expected


@pytest.mark.parametrize(
    ("width", "heads", "rotates", "pieces"),
    [
        (200, None, False, ["model.width=200", "into 3 heads", "write model.args.heads=2"]),
        (48, 5, False, ["into 5 heads", "write model.args.heads=4"]),
        (48, 16, True, ["even (for rotary positions)", "write model.args.heads=12"]),
        (7, 1, True, ["even (for rotary positions)", "write model.width=8"]),
        (16, 0, False, ["into 0 heads", "write model.args.heads=1"]),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_the_number_that_would(width, heads, rotates, pieces):
    with pytest.raises(ModelError) as caught:
        head_count(width, heads, rotates)
    assert all(piece in str(caught.value) for piece in pieces), str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPT((3, 8, 8), 9), r"samples have shape \(3, 8, 8\)"),
        (lambda: GPT((8,), 9, positions="alibi"), "positions='alibi' is not known: write rotary or learned"),
        (lambda: BERT((8,), 9, 0, "classification"), "vocabulary=0: BERT reads token ids"),
        (lambda: BERT((8,), 9, 10, "masked_lm"), "outputs=9 with vocabulary=10.*make them equal"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(make, message):
    with pytest.raises(ModelError, match=message):
        make()


def test_without_blocks_there_still_is_a_model():
    model, tokens = gpt(depth=0), some_tokens(t=3)
    assert model.generate(tokens, 2, temperature=0).shape == (3, 5)
