"""GPT against transformers' GPT2LMHeadModel with the same weights, and its own promises."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from fastllm.errors import UserError
from fastllm.files import previous, replace_folder
from fastllm.models import GPT, GPTConfig, load
from fastllm.tokenizers import load_tokenizer

transformers = pytest.importorskip("transformers")

# B batch, T tokens, V vocabulary

SIZES = {"vocab_size": 67, "context_length": 24, "n_layer": 3, "n_head": 4, "n_embd": 48}


@pytest.fixture
def gpt2_directory(tmp_path):
    """A small random GPT-2, written as Hugging Face writes it."""
    config = transformers.GPT2Config(
        vocab_size=67, n_positions=24, n_layer=3, n_head=4, n_embd=48, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide a mix-up
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_equals_gpt2(gpt2_directory):
    directory, oracle = gpt2_directory
    model = GPT.from_pretrained(directory)
    tokens = torch.randint(67, (3, 24))
    targets = tokens.clone()
    expected = oracle(tokens, labels=targets)
    torch.testing.assert_close(model(tokens), expected.logits, rtol=0, atol=1e-4)
    # Hugging Face shifts inside; here the caller does.
    loss = model.loss(tokens[:, :-1], targets[:, 1:])
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=1e-6)

    expected.loss.backward()
    loss.backward()
    from fastllm.models.formats.gpt2 import from_gpt2

    gradients = from_gpt2({name: p.grad for name, p in oracle.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_same_greedy_ids_as_gpt2(gpt2_directory):
    directory, oracle = gpt2_directory
    model = GPT.from_pretrained(directory)
    tokens = torch.randint(67, (2, 5))
    expected = oracle.generate(tokens, max_new_tokens=15, do_sample=False, pad_token_id=0)
    for _ in range(15):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(tokens, expected[:, : tokens.shape[1]])


@pytest.mark.parametrize("bias", [True, False])
def test_loss_equals_cross_entropy_of_logits(bias):
    model = GPT(GPTConfig(**SIZES, bias=bias))
    tokens, targets = torch.randint(67, (2, 24)), torch.randint(67, (2, 24))
    targets[0, :5] = -100
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(tokens, targets), expected, rtol=1e-5, atol=1e-6)


def test_packed_documents_stay_apart():
    """A packed row's loss is the mean over its documents' tokens, each document at the positions it has in the row."""
    model = GPT(GPTConfig(**SIZES))
    tokens, targets = torch.randint(67, (2, 24)), torch.randint(67, (2, 24))
    segment_ids = torch.tensor([[0] * 9 + [1] * 15, [0] * 24])
    loss = model.loss(tokens, targets, segment_ids)
    changed = tokens.clone()
    changed[0, :9] = (changed[0, :9] + 1) % 67  # the first document means nothing to the second
    before, after = (model.hidden(ids, segment_ids)[:, 9:] for ids in (tokens, changed))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    parts = []
    for row, own in ((0, slice(0, 9)), (0, slice(9, 24)), (1, slice(0, 24))):
        counted = torch.full_like(targets, -100)
        counted[row, own] = targets[row, own]
        other = torch.randint(67, tokens.shape)  # what is elsewhere does not matter
        other[row, own] = tokens[row, own]
        parts.append(model.loss(other, counted, segment_ids) * (own.stop - own.start) / 48)
    torch.testing.assert_close(loss, sum(parts), rtol=1e-6, atol=1e-6)
    # At a row's start the positions are those that the document has alone.
    alone = model.loss(tokens[:1, :9], targets[:1, :9])
    torch.testing.assert_close(parts[0] * 48 / 9, alone, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(loss, model.loss(tokens, targets))


def test_a_token_sees_only_those_before_it():
    model = GPT(GPTConfig(**SIZES))
    tokens = torch.randint(67, (1, 24))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 67
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=0)
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize("n_embd", [24, 96, 384])
def test_starts_near_the_loss_of_guessing_at_any_width(n_embd):
    model = GPT(GPTConfig(**{**SIZES, "n_embd": n_embd}))
    tokens, targets = torch.randint(67, (2, 16, 24))
    # A normalised row times weights of 0.02 sqrt(768 / C): logits have a deviation of 0.02 sqrt(768), whatever C is,
    # and logits s apart at random cost s^2 / 2 over ln V.
    spread = 0.02 * 768**0.5
    assert abs(model(tokens).std().item() / spread - 1) < 0.2
    assert abs(model.loss(tokens, targets).item() - math.log(67) - spread**2 / 2) < 0.1


def test_dropout_is_reproducible_and_off_in_eval():
    model = GPT(GPTConfig(**SIZES, dropout=0.5))
    tokens = torch.randint(67, (2, 24))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.loss(tokens, tokens).item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert model.loss(tokens, tokens).item() == model.loss(tokens, tokens).item()


def test_training_is_the_same_for_any_number_of_threads(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        torch.manual_seed(0)
        model = GPT(GPTConfig(**SIZES, dropout=0.1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model.loss(torch.randint(67, (4, 24)), torch.randint(67, (4, 24))).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_compiles_whole():
    model = GPT(GPTConfig(**SIZES))
    tokens = torch.randint(67, (2, 24))
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, tokens), model.loss(tokens, tokens))


def test_exports_with_dynamic_batch_and_length():
    model = GPT(GPTConfig(**SIZES)).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=SIZES["context_length"])
    program = torch.export.export(
        model, (torch.zeros(3, 7, dtype=torch.int64),), dynamic_shapes=({0: batch, 1: length},)
    )
    for shape in ((2, 24), (5, 3)):
        tokens = torch.randint(67, shape)
        assert torch.equal(program.module()(tokens), model(tokens))


def test_save_and_load(tmp_path):
    model = GPT(GPTConfig(**SIZES, dropout=0.25, bias=False))
    model.save_pretrained(tmp_path / "model")
    again = GPT.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_gives_its_best_model(tmp_path):
    """As load_tokenizer reads a run's folder."""
    config = GPTConfig(**SIZES)
    models = {name: GPT(config) for name in ("last", "best")}
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run has no checkpoint 'best' or 'last'; it has none yet"):
        GPT.from_pretrained(run)
    for name, model in models.items():
        replace_folder(run / "checkpoints" / name, model.save_pretrained)
        assert torch.equal(GPT.from_pretrained(run).embedding.token.weight, model.embedding.token.weight)
    best = run / "checkpoints" / "best"
    best.rename(previous(best))  # what a kill between two renames leaves
    assert torch.equal(GPT.from_pretrained(run).embedding.token.weight, models["best"].embedding.token.weight)
    content = bytearray((previous(best) / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (previous(best) / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        GPT.from_pretrained(run)


def test_gpt2_preset_has_gpt2s_parameters():
    with torch.device("meta"):
        assert GPT(GPTConfig.preset("gpt2")).num_parameters() == 124_439_808


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_embd": 50}, r"'n_embd' must be a multiple of n_head \(4\), got 50"),
        ({"n_layer": 0}, "'n_layer' must be at least 1, got 0"),
        ({"dropout": 1.5}, r"'dropout' must be in \[0, 1\), got 1.5"),
    ],
)
def test_wrong_config(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SIZES, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": "a"}, "GPTConfig: 'vocab_size' must be a whole number, got str 'a'"),
        ({"n_layer": 2.0}, "'n_layer' must be a whole number, got float 2.0"),
        ({"n_head": True}, "'n_head' must be a whole number, got bool True"),
        ({"dropout": "0.1"}, "'dropout' must be a number, got str '0.1'"),
        ({"bias": 1}, "'bias' must be a bool, got int 1"),
        ({"activation": ["gelu"]}, r"'activation' must be a str, got list \['gelu'\]"),
    ],
)
def test_a_config_of_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        GPTConfig(**{**SIZES, **arguments})


def test_wrong_input():
    model, cache = GPT(GPTConfig(**SIZES)), GPT(GPTConfig(**SIZES)).new_cache(1)
    tokens, lengths = torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5])
    for call in (model, model.hidden, lambda t: model.loss(t, tokens), lambda t: model(t, cache),
                 lambda t: model.prefill(t, lengths, cache)):  # fmt: skip
        with pytest.raises(TypeError, match=r"GPT: 'tokens' must be a Tensor, got list \[1, 2\]"):
            call([1, 2])
        with pytest.raises(TypeError, match=r"'tokens' must be whole numbers, got torch.float32"):
            call(torch.zeros(1, 5))
        for shape in ((5,), (), (1, 1, 5)):
            with pytest.raises(ValueError, match=rf"'tokens' must be \(B, T\), got shape {re.escape(str(shape))}"):
                call(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"'targets' must be a Tensor, got list"):
        model.loss(tokens, [1])
    with pytest.raises(ValueError, match=r"'targets' must be \(1, 5\) as tokens, got \(1, 4\)"):
        model.loss(tokens, tokens[:, 1:])
    with pytest.raises(TypeError, match=r"'lengths' must be a Tensor, got list \[5\]"):
        model.prefill(tokens, [5], cache)
    with pytest.raises(TypeError, match=r"GPT: 'config' must be a GPTConfig, got dict"):
        GPT(SIZES)


@pytest.mark.parametrize(("read", "name"), [(load, "path"), (GPT.from_pretrained, "path"), (load_tokenizer, "source")])
def test_what_is_not_a_path(read, name):
    with pytest.raises(TypeError, match=f"'{name}' must be a path, got int 3"):
        read(3)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"'preset' must be one of gpt2, .*got 'gpt3'"):
        GPTConfig.preset("gpt3")


def test_too_many_tokens():
    with pytest.raises(ValueError, match=r"'tokens' must be at most context_length \(24\) long, got 25"):
        GPT(GPTConfig(**SIZES))(torch.zeros(1, 25, dtype=torch.int64))
