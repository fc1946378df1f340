"""The encoder-decoder against torch.nn.Transformer with the same weights, a plain reference, and its own promises."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastllm.errors import UserValueError
from fastllm.models import Transformer, TransformerConfig, load
from fastllm.models.loading import with_weights
from fastllm.train import estimate
from fastllm.train.parts import checkpoint_activations

# B batch, S tokens of the source, T tokens of the target, V vocabulary

V, C, H = 29, 16, 4
SIZES = {"vocab_size": V, "context_length": 12, "n_encoder_layer": 2, "n_decoder_layer": 3, "n_head": H, "n_embd": C,
         "n_hidden": 32, "dropout": 0.0}  # fmt: skip
KINDS = {
    "paper": {},
    "pre-norm": {"norm_first": True},
    "last-norms": {"final_norm": True},
    "gelu": {"activation": "gelu", "positions": "learned"},
    "marian": {"activation": "silu", "positions": "sinusoidal_halves", "output_bias": True},
    "swiglu": {"activation": "swiglu", "norm_first": True, "bias": False, "positions": "none"},
    "apart": {"source_vocab_size": 23, "share_embeddings": "none", "output_bias": True, "scale_embeddings": False},
    "target": {"source_vocab_size": 31, "activation": "gelu_tanh"},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
LENGTHS = torch.tensor([9, 1, 6])


def small(kind, seed=0, std=0.3, **options):
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**{**SIZES, **KINDS[kind], **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide a mix-up
            parameter.normal_(1.0 if parameter.dim() == 1 and parameter.numel() == C else 0.0, std)
    return model


def batch(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(model.source_vocab_size, (3, 9), generator=generator)
    target = torch.randint(V, (3, 7), generator=generator)
    labels = torch.randint(V, (3, 7), generator=generator)
    labels[1, 4:] = -100
    return source, target, labels


# --- references -------------------------------------------------------------------------------------------------------


class Plain:
    """The model spelled out in float64, a sequence at a time, from its weights by name."""

    def __init__(self, model):
        self.config = model.config
        self.weights = {name: value.double() for name, value in model.state_dict().items()}
        self.tables = {name: value.double() for name, value in model.named_buffers()}

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name, x):
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias", 0.0)
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt() * weight + bias

    def attend(self, query, key, value, causal):
        heads = [part.unflatten(-1, (H, -1)).transpose(0, 1) for part in (query, key, value)]
        scores = heads[0] @ heads[1].transpose(-2, -1) / math.sqrt(C // H)
        if causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf"), dtype=torch.float64).triu(1)
        return (scores.softmax(-1) @ heads[2]).transpose(0, 1).flatten(-2)

    def self_attention(self, name, x, causal):
        return self.linear(f"{name}.projection", self.attend(*self.linear(f"{name}.qkv", x).chunk(3, -1), causal))

    def cross_attention(self, name, x, memory):
        key, value = self.linear(f"{name}.key_value", memory).chunk(2, -1)
        return self.linear(f"{name}.projection", self.attend(self.linear(f"{name}.query", x), key, value, False))

    def feed_forward(self, name, x):
        hidden = self.linear(f"{name}.expand", x)
        kind = self.config.activation
        if kind == "swiglu":
            gate, up = hidden.chunk(2, -1)
            hidden = F.silu(gate) * up
        else:
            tanh = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
            hidden = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": tanh, "silu": F.silu}[kind](hidden)
        return self.linear(f"{name}.contract", hidden)

    def around(self, norm, sub_layer, x):
        return x + sub_layer(self.norm(norm, x)) if self.config.norm_first else self.norm(norm, x + sub_layer(x))

    def embed(self, table, learned, ids):
        x = self.weights[f"{table}.weight"][ids] * (math.sqrt(C) if self.config.scale_embeddings else 1.0)
        places = torch.arange(len(ids), dtype=torch.float64)[:, None]
        angles = places / 10000 ** (torch.arange(0, C, 2, dtype=torch.float64) / C)
        if self.config.positions == "sinusoidal":
            x[:, 0::2] += angles.sin()
            x[:, 1::2] += angles.cos()
        elif self.config.positions == "sinusoidal_halves":
            x = x + torch.cat([angles.sin(), angles.cos()], -1)
        elif self.config.positions == "learned":
            x = x + self.weights[f"{learned}.weight"][: len(ids)]
        return x

    def logits(self, source, target):
        config = self.config
        table = "source_embedding" if "source_embedding.weight" in self.weights else "embedding"
        x = self.embed(table, "source_positions", source)
        for i in range(config.n_encoder_layer):
            name = f"encoder.{i}"
            x = self.around(f"{name}.norm_1", lambda x, n=name: self.self_attention(f"{n}.attention", x, False), x)
            x = self.around(f"{name}.norm_2", lambda x, n=name: self.feed_forward(f"{n}.feed_forward", x), x)
        memory = self.norm("encoder_norm", x) if config.ends_in_norm else x
        x = self.embed("embedding", "positions", target)
        for i in range(config.n_decoder_layer):
            name = f"decoder.{i}"
            x = self.around(f"{name}.norm_1", lambda x, n=name: self.self_attention(f"{n}.attention", x, True), x)
            cross = lambda x, n=name: self.cross_attention(f"{n}.cross_attention", x, memory)  # noqa: E731
            x = self.around(f"{name}.norm_2", cross, x)
            x = self.around(f"{name}.norm_3", lambda x, n=name: self.feed_forward(f"{n}.feed_forward", x), x)
        x = self.norm("decoder_norm", x) if config.ends_in_norm else x
        output = self.weights.get("output.weight", self.weights["embedding.weight"])
        return x @ output.T + self.weights.get("output.bias", 0.0)


@EVERY_KIND
def test_equals_the_plain_reference(kind):
    model = small(kind)
    source, target, labels = batch(model)
    plain = Plain(model)
    logits = model(source, target, LENGTHS)
    expected = torch.stack(
        [plain.logits(ids[:length], own) for ids, length, own in zip(source, LENGTHS.tolist(), target, strict=True)]
    )
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)
    for smoothing in (0.0, 0.1):
        loss = model.loss(source, LENGTHS, target, labels, label_smoothing=smoothing)
        wanted = F.cross_entropy(expected.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)


def torch_twin(model):
    """Return torch.nn.Transformer with a model's weights; its fast path, which differs under masks, is off."""
    config = model.config
    twin = torch.nn.Transformer(
        C, H, config.n_encoder_layer, config.n_decoder_layer, config.n_hidden, 0.0, config.activation,
        norm_first=config.norm_first, batch_first=True,
    )  # fmt: skip
    twin.encoder.enable_nested_tensor = False
    ours, theirs = model.state_dict(), {}
    for side, blocks in (("encoder", config.n_encoder_layer), ("decoder", config.n_decoder_layer)):
        norms = (1, 2) if side == "encoder" else (1, 2, 3)
        for i in range(blocks):
            mine, own = f"{side}.{i}", f"{side}.layers.{i}"
            for part in ("weight", "bias"):
                theirs[f"{own}.self_attn.in_proj_{part}"] = ours[f"{mine}.attention.qkv.{part}"]
                theirs[f"{own}.self_attn.out_proj.{part}"] = ours[f"{mine}.attention.projection.{part}"]
                if side == "decoder":
                    cross = f"{mine}.cross_attention"
                    both = [ours[f"{cross}.query.{part}"], ours[f"{cross}.key_value.{part}"]]
                    theirs[f"{own}.multihead_attn.in_proj_{part}"] = torch.cat(both)
                    theirs[f"{own}.multihead_attn.out_proj.{part}"] = ours[f"{cross}.projection.{part}"]
                theirs[f"{own}.linear1.{part}"] = ours[f"{mine}.feed_forward.expand.{part}"]
                theirs[f"{own}.linear2.{part}"] = ours[f"{mine}.feed_forward.contract.{part}"]
                for n in norms:
                    theirs[f"{own}.norm{n}.{part}"] = ours[f"{mine}.norm_{n}.{part}"]
        for part in ("weight", "bias"):
            theirs[f"{side}.norm.{part}"] = ours[f"{side}_norm.{part}"]
    twin.load_state_dict(theirs)
    return twin


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_equals_torchs_transformer_with_gradients(activation, norm_first):
    model = small("last-norms", activation=activation, norm_first=norm_first, positions="none")
    source, target, labels = batch(model)
    twin = torch_twin(model).train()  # without dropout; its training path is the plain one
    table = model.embedding.weight.detach().clone().requires_grad_()
    hidden = torch.arange(9) >= LENGTHS[:, None]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7)
    out = twin(
        table[source] * C**0.5, table[target] * C**0.5, tgt_mask=mask, src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden, tgt_is_causal=True,
    )  # fmt: skip
    expected = F.cross_entropy((out @ table.T).flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    loss = model.loss(source, LENGTHS, target, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(model.embedding.weight.grad, table.grad, rtol=1e-4, atol=1e-5)
    for mine, own in (
        ("encoder.0.attention.qkv.weight", "encoder.layers.0.self_attn.in_proj_weight"),
        ("encoder.1.norm_2.bias", "encoder.layers.1.norm2.bias"),
        ("decoder.2.feed_forward.expand.weight", "decoder.layers.2.linear1.weight"),
        ("decoder.0.cross_attention.projection.weight", "decoder.layers.0.multihead_attn.out_proj.weight"),
        ("decoder_norm.weight", "decoder.norm.weight"),
    ):
        gradient, wanted = model.get_parameter(mine).grad, twin.get_parameter(own).grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, n=mine: f"{n}: {m}")


# --- promises ---------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_padding_changes_no_bit(kind):
    model = small(kind)
    source, target, _ = batch(model)
    together = model(source, target, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        assert torch.equal(alone[0], together[row])


@EVERY_KIND
def test_targets_that_are_continued_get_what_forward_gives(kind):
    model = small(kind)
    source, target, _ = batch(model)
    expected = model(source, target, LENGTHS)
    sources = [ids[:length].tolist() for ids, length in zip(source, LENGTHS.tolist(), strict=True)]
    state = model.reading(sources).start([ids[:2].tolist() for ids in target], 5)
    torch.testing.assert_close(state.logits, expected[:, 1], rtol=0, atol=1e-5)
    for t in range(2, 7):
        state.push(target[:, t].tolist())
        torch.testing.assert_close(state.logits, expected[:, t], rtol=0, atol=2e-5)


@EVERY_KIND
def test_a_targets_logits_do_not_depend_on_the_others(kind):
    """Rows are copied, dropped and shuffled, as beam searches do; each sees its own source, bit for bit."""
    model = small(kind)
    source, _, _ = batch(model)
    sources = [ids[:length].tolist() for ids, length in zip(source, LENGTHS.tolist(), strict=True)]
    prompts = [[3], [4, 5, 6], [7, 8]]
    state = model.reading(sources).start(prompts, 4, room=7)
    histories = [[0, []], [1, []], [2, []]]
    steps = [([0, 0, 1, 1, 1, 2], 3), ([5, 1, 2, 4, 4, 0, 3], 11), ([0, 5], 17), ([1], 2)]
    for rows, token in steps:
        state.keep(rows)
        histories = [[histories[row][0], [*histories[row][1]]] for row in rows]
        tokens = [(token + i) % V for i in range(len(rows))]
        for history, one in zip(histories, tokens, strict=True):
            history[1].append(one)
        state.push(tokens)
        for row, (which, pushed) in enumerate(histories):
            alone = model.reading([sources[which]]).start([prompts[which]], 4)
            for one in pushed:
                alone.push([one])
            assert torch.equal(alone.logits[0], state.logits[row]), (rows, row)


def test_a_context_that_is_full():
    model = small("paper")
    state = model.reading([[1, 2]]).start([[0] * 11], 4)
    state.push([5])
    with pytest.raises(ValueError, match="is full: its capacity is 12 tokens"):
        state.push([6])
    with pytest.raises(UserValueError, match=r"must have at most 12 tokens \(context_length\), got 13"):
        model.reading([[1, 2]]).start([[0] * 13], 4)


@EVERY_KIND
def test_cost_counts_the_parameters(kind):
    model = small(kind)
    assert model.num_parameters() == model.config.cost().parameters


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_cost_counts_what_is_kept_for_backward(norm_first, activation, checkpointing):
    config = TransformerConfig(
        97, 64, n_encoder_layer=3, n_decoder_layer=3, n_head=4, n_embd=64, n_hidden=256, dropout=0.1,
        norm_first=norm_first, activation=activation,
    )  # fmt: skip
    model, kept = Transformer(config), {}
    if checkpointing:
        checkpoint_activations(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    source, target = torch.randint(97, (2, 2, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(source, None, target, target)
    expected = estimate.activations(config.cost(), 2, half=False, checkpointing=checkpointing)
    if checkpointing:  # the one block that is computed again is not there yet
        largest = max(estimate.block_activations(block, half=False) for block in config.cost().blocks)
        expected -= 2 * 64 * largest
        expected *= 1.0 if norm_first else 0.6  # a post-norm block hands on one tensor, not two
    assert sum(kept.values()) == pytest.approx(expected, rel=0.16 if checkpointing else 0.05)


@EVERY_KIND
def test_files_bring_it_back(kind, tmp_path):
    model = small(kind)
    model.save_pretrained(tmp_path)
    other = load(tmp_path)
    source, target, _ = batch(model)
    assert other.config == model.config
    assert torch.equal(other(source, target, LENGTHS), model(source, target, LENGTHS))


def test_where_a_translation_looks():
    model = small("pre-norm")
    sources, targets = [[1, 2, 3], [4, 5, 6, 7, 8]], [[9, 10], [11, 12, 13]]
    maps = model.cross_attention(sources, targets)
    assert [tuple(one.shape) for one in maps] == [(2, 3), (3, 5)]
    for one in maps:
        torch.testing.assert_close(one.sum(1), torch.ones(len(one)))
    first = model.cross_attention(sources[:1], targets[:1], layer=0)[0]
    assert not torch.allclose(first, maps[0])
    # Independently: by the weights that give the block's own output.
    block, seen = model.decoder[-1].cross_attention, []
    handle = block.register_forward_hook(lambda module, given, output: seen.append((given, output)))
    model(torch.tensor(sources[:1]), torch.tensor(targets[:1]))
    handle.remove()
    (x, memory, *_), output = seen[0]
    value = block.keys_and_values(memory)[1]
    mixed = (block.weights(x, memory) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.projection(mixed), output)
    torch.testing.assert_close(block.weights(x, memory).mean(1)[0], maps[0])


def test_the_ops_that_it_names_are_those_that_it_calls():
    from tests.models.test_kernels import Watched

    for options in KINDS.values():
        model = Transformer(TransformerConfig(**{**SIZES, **options, "dropout": 0.1, "activation_dropout": 0.1}))
        source, target, labels = batch(model)
        with Watched() as watched:
            model.loss(source, LENGTHS, target, labels, label_smoothing=0.1).backward()
            model.eval()(source, target)
            model.reading([[1, 2]]).start([[0]], 2).push([1])
        assert watched.names <= set(model.kernels), watched.names - set(model.kernels)


def test_dropout_is_where_it_should_be():
    """Each probability alone changes training, and none evaluation."""
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        for activation in ("relu", "gelu", "swiglu"):
            options = {"dropout": 0.0, name: 0.5, "activation": activation}
            model = Transformer(TransformerConfig(**{**SIZES, **options}))
            source, target, labels = batch(model)
            model.eval()
            assert torch.equal(model(source, target), model(source, target))
            model.train()
            assert not torch.equal(model(source, target), model(source, target)), options
            model.loss(source, None, target, labels).backward()


def test_autocast_trains():
    model = small("paper", dropout=0.1).train()
    source, target, labels = batch(model)
    exact = model.eval().loss(source, LENGTHS, target, labels)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(source, LENGTHS, target, labels)
        assert half.item() == pytest.approx(exact.item(), rel=0.03)
        model.train().loss(source, LENGTHS, target, labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options, error",
    [
        ({"n_head": 3}, "'n_embd' must be a multiple of n_head"),
        ({"activation": "tanh"}, "'activation' must be one of relu, gelu"),
        ({"positions": "rotary"}, "'positions' must be one of sinusoidal"),
        ({"share_embeddings": "some"}, "'share_embeddings' must be one of all, target, none"),
        ({"share_embeddings": "all", "source_vocab_size": 5}, "'share_embeddings' must be target or none where"),
        ({"dropout": 1.0}, r"'dropout' must be in \[0, 1\)"),
        ({"n_decoder_layer": 0}, "'n_decoder_layer' must be at least 1"),
    ],
)
def test_settings_that_cannot_be(options, error):
    with pytest.raises(ValueError, match=error):
        TransformerConfig(**{**SIZES, **options})


def test_an_unknown_preset():
    with pytest.raises(ValueError, match="must be one of tiny, micro, small, base, big, deep, got 'bse'; did you mean"):
        TransformerConfig.preset("bse")


def test_published_sizes():
    """Vaswani et al., 2017, table 3: 65 and 213 million parameters with their vocabulary of about 37,000."""
    assert TransformerConfig.preset("base").cost().parameters == pytest.approx(65e6, rel=0.04)
    assert TransformerConfig.preset("big").cost().parameters == pytest.approx(213e6, rel=0.02)


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda m, s, t: m(s[0], t), r"'source' must be \(B, T\), got shape \(9,\)"),
        (lambda m, s, t: m(s, t[:2]), r"'target' must be \(3, T\), a row for each source, got shape \(2, 7\)"),
        (lambda m, s, t: m(s.float(), t), "'source' must be whole numbers, got torch.float32"),
        (lambda m, s, t: m(s.repeat(1, 2), t), r"'source' must be at most context_length \(12\) long, got 18"),
        (lambda m, s, t: m(s, t, LENGTHS[:2]), r"'source_lengths' must be \(3,\), one a source, got \(2,\)"),
        (lambda m, s, t: m.loss(s, None, t, t[:, 1:]), r"'labels' must be \(3, 7\) as target, got \(3, 6\)"),
        (lambda m, s, t: m.reading([[1], []]), "must have 1 to 12 tokens each .* got 0 in number 1"),
        (lambda m, s, t: m.reading([[1, 99]]), r"must have ids in \[0, 29\), got 1 to 99 in number 0"),
        (lambda m, s, t: m.reading([[1]]).start([[0], [0]], 3), "one for each of the 1 sources, got 2"),
    ],
)
def test_wrong_input(call, error):
    model = small("paper")
    source, target, _ = batch(model)
    with pytest.raises((ValueError, TypeError), match=error):
        call(model, source, target)


def test_weights_are_all_there_is():
    """No random number is drawn for what is loaded, and tables that no file holds are made."""
    model = small("marian")
    state = torch.random.get_rng_state()
    other = with_weights(model.config, dict(model.state_dict())).eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    source, target, _ = batch(model)
    assert torch.equal(other(source, target), model(source, target))
