"""Llama against transformers' classes with the same weights, and what is its own: rotary scaling, windows, ties."""

import math

import pytest
import torch

from fastllm.generation import generate
from fastllm.models import Llama, LlamaConfig, load
from fastllm.models.llama import rotary_frequencies
from tests.models.kinds import KINDS

transformers = pytest.importorskip("transformers")

# B batch, T tokens, V vocabulary

SIZES = {
    "vocab_size": 67, "max_position_embeddings": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 56,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
TWINS = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama-llama3": ("Llama", {"rope_theta": 500.0, "rope_scaling": LLAMA3}),
    "llama-yarn": (
        "Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6}},
    ),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 12}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}  # fmt: skip


@pytest.fixture(params=TWINS)
def twins(request, tmp_path):
    """A small random model of transformers, and ours, read from its folder."""
    name, options = TWINS[request.param]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options, attn_implementation="eager")
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in theirs.parameters():  # norms start at 1, which would hide a mix-up
        torch.nn.init.normal_(parameter, std=0.15)
    theirs.save_pretrained(tmp_path)
    return load(tmp_path), theirs


def test_equals_transformers(twins):
    model, theirs = twins
    assert isinstance(model, Llama)
    tokens = torch.randint(67, (3, 24))
    expected = theirs(tokens, labels=tokens)
    torch.testing.assert_close(model(tokens), expected.logits, rtol=0, atol=1e-4)
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])  # theirs shifts inside
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=1e-6)


def test_gradients_equal_transformers(twins, tmp_path):
    """Theirs are written and read as weights are, so that the names are theirs."""
    model, theirs = twins
    tokens = torch.randint(67, (3, 24))
    theirs(tokens, labels=tokens).loss.backward()
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    gradients = load(tmp_path / "gradients")
    for (name, ours), expected in zip(model.named_parameters(), gradients.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_same_greedy_ids(twins):
    model, theirs = twins
    prompt = torch.randint(1, 67, (5,))
    expected = theirs.generate(prompt[None], max_new_tokens=19, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert list(generate(model, prompt, 19, temperature=0)) == expected[0, 5:].tolist()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_autocast_keeps_the_stream_in_float32(bfloat16):
    config = KINDS["llama"](67, 24)
    model = Llama(config)
    tokens = torch.randint(67, (2, 24))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model.loss(tokens, tokens)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(tokens, tokens), rtol=1e-2, atol=1e-2)


def test_dropout_is_reproducible_and_off_in_eval():
    model = Llama(KINDS["qwen3"](67, 24, dropout=0.5))
    tokens = torch.randint(67, (2, 24))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.loss(tokens, tokens).item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert model.loss(tokens, tokens).item() == model.loss(tokens, tokens).item()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_packed_documents_stay_apart(kind):
    model = Llama(KINDS[kind](67, 24))
    tokens = torch.randint(67, (2, 24))
    segment_ids = torch.tensor([[0] * 9 + [1] * 15, [0] * 24])
    changed = tokens.clone()
    changed[0, :9] = (changed[0, :9] + 1) % 67  # the first document means nothing to the second
    before, after = (model.hidden(ids, segment_ids)[:, 9:] for ids in (tokens, changed))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not torch.allclose(model.hidden(changed)[0, 9:14], before[0, :5])


def test_a_window_hides_what_is_further_back():
    model = Llama(KINDS["mistral"](67, 24, n_layer=1))
    tokens = torch.randint(67, (1, 24))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 67
    differ = (model.hidden(tokens) != model.hidden(changed)).any(-1)[0]
    assert differ.nonzero().flatten().tolist() == [10, 11, 12, 13, 14]  # 5 tokens, itself included


def test_memory_that_is_made_anew_has_the_angles():
    """As FSDP does it: made on meta, given memory, filled from a file, which has no angles."""
    config = KINDS["llama-yarn"](67, 24)
    model = Llama(config).eval()
    with torch.device("meta"):
        other = Llama(config)
    for _ in range(2):  # also where there was memory before
        other.to_empty(device="cpu").eval()
        other.load_state_dict(model.state_dict())
        tokens = torch.randint(67, (2, 24))
        assert torch.equal(other(tokens), model(tokens))


def test_compiles_whole():
    model = Llama(KINDS["qwen3"](67, 24))
    tokens = torch.randint(67, (2, 24))
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, tokens), model.loss(tokens, tokens))


def test_exports_with_dynamic_batch_and_length():
    model = Llama(KINDS["llama"](67, 24)).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=24)
    program = torch.export.export(
        model, (torch.zeros(3, 7, dtype=torch.int64),), dynamic_shapes=({0: batch, 1: length},)
    )
    for shape in ((2, 24), (5, 3)):
        tokens = torch.randint(67, shape)
        assert torch.equal(program.module()(tokens), model(tokens))


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_the_settings_say(tied):
    for kind in ("llama", "mistral", "qwen2", "qwen3"):
        config = KINDS[kind](67, 24)
        config.tie_embeddings = tied
        assert Llama(config).num_parameters() == config.cost().parameters


def test_published_parameters():
    """Of Llama 2 (Touvron et al., 2023), Llama 3.2 1B and SmolLM2-135M as their checkpoints have them."""
    sizes = {"llama2-7b": 6_738_415_616, "llama3.2-1b": 1_235_814_400, "smollm2-135m": 134_515_008}
    for name, count in sizes.items():
        assert LlamaConfig.preset(name).cost().parameters == count


def test_settings_of_trained_weights_that_may_change():
    trained = KINDS["llama"](67, 24)
    assert trained.adapted(dropout=0.2, context_length=9).context_length == 9
    longer = trained.adapted(context_length=48, rope_scaling="yarn", rope_factor=2.0)
    assert (longer.context_length, longer.rope_context) == (48, 24)  # of the first training
    for options in ({}, {"rope_factor": 2.0}, {"rope_scaling": "linear", "rope_factor": 1.5}):
        with pytest.raises(
            ValueError, match=r"'context_length' \(48\) is longer than .* --rope_factor 2 --rope_context 24"
        ):
            trained.adapted(context_length=48, **options)
    scaled = LlamaConfig.preset("llama3.2-1b")
    assert scaled.adapted(context_length=262144).context_length == 262144  # 32 times 8192
    with pytest.raises(ValueError, match="--rope_factor 64 --rope_context 8192"):
        scaled.adapted(context_length=524288)


def test_a_shorter_context_leaves_the_angles_alone():
    trained = KINDS["llama"](67, 24, rope_scaling="yarn", rope_factor=4.0)
    before, after = (rotary_frequencies(config)[0] for config in (trained, trained.adapted(context_length=6)))
    assert torch.equal(before, after)


def test_frequencies_of_llama3_keep_the_quick_and_slow_down_the_slow():
    config = LlamaConfig.preset("llama3.2-1b")
    frequencies, scale = rotary_frequencies(config)
    plain = 500000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    turns = 8192 * plain / (2 * math.pi)
    assert scale == 1.0
    assert torch.equal(frequencies[turns > 4], plain[turns > 4])
    torch.testing.assert_close(frequencies[turns < 1], plain[turns < 1] / 32)
    assert ((frequencies / plain).diff() <= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_kv_head": 3}, r"'n_head' must be a multiple of n_kv_head \(3\), got 4"),
        ({"head_dim": 7}, "'head_dim' must be even, as pairs of channels turn, got 7"),
        ({"n_embd": 30}, r"'n_embd' must be a multiple of n_head \(4\), got 30"),
        ({"window": 0}, "'window' must be at least 1, got 0"),
        ({"rope_scaling": "dynamic"}, "'rope_scaling' must be one of none, linear, llama3, yarn, got 'dynamic'"),
        ({"rope_factor": 0.5}, "'rope_factor' must be at least 1, got 0.5"),
        ({"rope_base": 1.0}, "'rope_base' must be over 1, got 1.0"),
        ({"rope_attention": 0.0}, "'rope_attention' must be positive, got 0.0"),
        (
            {"rope_high_frequency": 1.0},
            r"'rope_high_frequency' must be greater than rope_low_frequency \(1.0\), got 1.0",
        ),
        ({"dropout": 1.0}, r"'dropout' must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_config(options, message):
    with pytest.raises(ValueError, match=f"LlamaConfig: {message}"):
        KINDS["llama"](67, 24, **options)
