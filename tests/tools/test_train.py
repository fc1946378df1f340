"""The command line and generation."""

import sys

import pytest
import torch

from fastllm import cli
from fastllm.errors import UserError
from fastllm.generation import generate
from fastllm.models import GPT, GPTConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nowhere"], "nowhere does not exist"),
        (["train", "--resume=nowhere"], "is missing or damaged"),
        (["train", "--resume=x", "--n_layer=3"], "leave out --n_layer"),
        (["train"], "'data' and 'out' must be given"),
        (["prepare", "shakespeare", "--plays=some"], "'plays' must be tiny or all, got 'some'"),
    ],
)
def test_command_lines_that_cannot_work(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_options_may_be_spelt_with_dashes():
    words = ["train", "--max-steps=5", "--out", "a-b", "--data=c-d", "--", "--peer-name"]
    expected = ["train", "--max_steps=5", "--out", "a-b", "--data=c-d", "--", "--peer-name"]
    assert cli.underscored(words) == expected


def test_a_misspelt_option_is_told_its_neighbour(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastllm", "train", "--n_leyer=3"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "did you mean --n_layer?" in capsys.readouterr().err


def test_generate_is_seeded_greedy_and_exact_in_top_k():
    torch.manual_seed(0)
    model = GPT(GPTConfig(11, 8, 1, 2, 16))
    prompt = [1, 2, 3]
    assert list(generate(model, prompt, 20, seed=5)) == list(generate(model, prompt, 20, seed=5))
    greedy = list(generate(model, prompt, 20, temperature=0))
    assert greedy == list(generate(model, prompt, 20, top_k=1, seed=1))
    assert model.training
    with torch.no_grad():
        assert greedy[0] == int(model(torch.tensor([prompt]))[0, -1].argmax())
        model.embedding.token.weight.zero_()  # all logits equal: exactly k may come out
    assert len(set(generate(model, prompt, 200, top_k=3, seed=0))) == 3


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "must have at least one token"),
        ([11], {}, r"must have ids in \[0, 11\), got 11 to 11"),
        ([1], {"temperature": -1.0}, "'temperature' must be at least 0"),
        ([1], {"top_k": 0}, "'top_k' must be at least 1"),
    ],
)
def test_generate_refuses(prompt, options, message):
    with pytest.raises(UserError, match=message):
        generate(GPT(GPTConfig(11, 8, 1, 2, 16)), prompt, 1, **options)


def test_info(capsys):
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert "CPU capability" in output
    assert "scaled_dot_product" in output.replace("\n", "")
