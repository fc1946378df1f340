"""Models with more token ids than their tokenizer has, as nanoGPT's are: 50304 for the 50257 of GPT-2."""

import pytest
import torch

from fastllm import cli
from fastllm.data import TokenData
from fastllm.errors import UserError
from fastllm.generation import beam_search, generate, generate_batch, generate_text
from fastllm.models import GPT, GPTConfig
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer
from fastllm.train import TrainConfig, checkpoint
from fastllm.train.trainer import Trainer
from tests.models.formats.test_gpt2 import nanogpt_checkpoint
from tests.train.tiny import assert_same_weights, rows, train, train_until, weights

TOKENS, IDS = 28, 64  # of the text in the fixture `data`, and of the model
SHORT = ["--batch_size=4", "--eval_batches=2", "--warmup_steps=2", "--threads=1", "--learning_rate=1e-3"]


@pytest.fixture
def nanogpt(tmp_path):
    """A checkpoint that would give padding all the time, if it were allowed to."""
    torch.manual_seed(3)
    stored = nanogpt_checkpoint(True, vocabulary=IDS)
    stored["model"]["transformer.wte.weight"][TOKENS:] *= 30  # the output layer shares it
    torch.save(stored, tmp_path / "ckpt.pt")
    return tmp_path / "ckpt.pt"


def tune(data, run, source, *options):
    return cli.main(["train", f"--data={data}", f"--out={run}", f"--init={source}", *SHORT, *options])


def test_a_nanogpt_checkpoint_is_fine_tuned_resumed_and_used(data, tmp_path, nanogpt, capsys):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    options = ["--max_steps=12", "--eval_interval=6", "--sample_interval=6"]
    assert tune(data, straight, nanogpt, *options) == 0
    assert "(36 of its 64 token ids are padding)" in capsys.readouterr().out
    assert weights(straight)["embedding.token.weight"].shape[0] == IDS
    config = TrainConfig.load(straight / "config.yaml")
    assert config.vocab_size == IDS
    assert (config.model.n_layer, config.model.context_length, config.model.activation) == (2, 8, "gelu")
    for text in (straight / "samples").iterdir():  # decoding an id of the padding would have failed
        assert len(text.read_text()) > 200
    train_until(config_at(config, halfway), 7)
    nanogpt.unlink()  # a resumed run needs it no more
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    assert_same_weights(straight, halfway)
    assert cli.main(["eval", str(straight)]) == 0
    assert cli.main(["sample", str(straight), "--prompt=the ", "--max_new_tokens=50"]) == 0
    assert cli.main(["export", str(straight), str(tmp_path / "exported")]) == 0
    assert GPT.from_pretrained(tmp_path / "exported").config.vocab_size == IDS
    assert cli.main(["estimate", f"--init={straight}"]) == 0
    assert f"{GPT.from_pretrained(tmp_path / 'exported').num_parameters():,}" in capsys.readouterr().out
    # ... and the run's own checkpoint starts another one.
    assert tune(data, tmp_path / "again", straight, "--max_steps=1") == 0


def test_a_model_that_was_read_trains_with_its_dropout(data, tmp_path, nanogpt):
    config = TrainConfig(data=data, out=tmp_path / "run", init=nanogpt, batch_size=4, threads=1)
    trainer = Trainer(config)
    try:
        assert trainer.model.config.dropout == 0.1
        assert all(module.training for module in trainer.model.modules())
    finally:
        trainer.close()


def config_at(config, run):
    config.out = run
    return config


def test_a_new_model_is_padded_where_it_is_asked_for(data, tmp_path, monkeypatch):
    largest, loss = [], GPT.loss

    def watched(self, tokens, targets, *others, **options):
        largest.append(max(int(tokens.max()), int(targets.max())))
        return loss(self, tokens, targets, *others, **options)

    monkeypatch.setattr(GPT, "loss", watched)
    assert train(data, tmp_path / "run", "--vocab-size=64", "--max_steps=4") == 0
    assert max(largest) == TOKENS - 1  # padding is never a target
    assert TrainConfig.load(tmp_path / "run" / "config.yaml").vocab_size == IDS
    assert cli.main(["train", f"--resume={tmp_path / 'run'}", "--max_steps=6"]) == 0
    assert rows(tmp_path / "run")[-1]["step"] == 6
    model, tokenizer = checkpoint.load_model(tmp_path / "run", "last")
    assert (model.config.vocab_size, tokenizer.vocab_size) == (IDS, TOKENS)


def test_a_vocabulary_smaller_than_the_tokenizers(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--vocab_size=27") == 2
    error = capsys.readouterr().err
    assert f"'vocab_size' is too small for {data}: 'tokenizer' must have at most the model's 27 tokens, got 28" in error
    assert train(data, tmp_path / "run", "--vocab_size=0") == 2
    assert "'vocab_size' must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_init_keeps_the_models_vocabulary(data, tmp_path, nanogpt, capsys):
    assert tune(data, tmp_path / "run", nanogpt, "--vocab_size=128") == 2
    assert "'init' sets the model's vocab_size (64); leave it out" in capsys.readouterr().err


def test_init_with_another_tokenizer_of_fewer_tokens(data, tmp_path, capsys):
    """Fewer tokens would fit; but these mean something else."""
    GPT(GPTConfig(257, 8, 1, 2, 8)).save_pretrained(tmp_path / "model")
    ByteTokenizer().save(tmp_path / "model")
    assert tune(data, tmp_path / "run", tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert f"prepare the data with the model's, with --tokenizer_from {tmp_path / 'model'}" in error
    words = "the quick brown fox jumps over the lazy dog. " * 60
    (tmp_path / "words.txt").write_text(words)
    advice = ["prepare", "text", str(tmp_path / "words.txt"), "--tokenizer-from", str(tmp_path / "model")]
    assert cli.main([*advice, f"--out={tmp_path / 'bytes'}"]) == 0
    assert tune(tmp_path / "bytes", tmp_path / "run", tmp_path / "model", "--max_steps=1") == 0


def test_padding_is_never_generated():
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer("abcd")
    model = GPT(GPTConfig(16, 8, 1, 2, 16))
    with torch.no_grad():
        model.embedding.token.weight[4:] *= 30
    assert max(generate(model, [1], 50, seed=1)) > 3
    assert max(generate(model, [1], 50, seed=1, vocabulary=4)) <= 3
    assert max(max(r.ids) for r in generate_batch(model, [[1], [2, 3]], 50, seed=1, vocabulary=4)) <= 3
    assert len(generate_text(model, tokenizer, ["a"], 50, seed=1)[0].text) == 50
    assert max(beam_search(model, [1], 20, num_beams=3, vocabulary=4)[0].ids) <= 3
    for wrong in (0, -1, 17):
        with pytest.raises(UserError, match=r"'vocabulary' must be in \[1, 16\], got"):
            generate(model, [1], 5, vocabulary=wrong)
        with pytest.raises(UserError, match=r"'vocabulary' must be in \[1, 16\], got"):
            beam_search(model, [1], 5, num_beams=2, vocabulary=wrong)
    with pytest.raises(ValueError, match="'tokenizer' must have at most the model's 16 tokens, got 257"):
        generate_text(model, ByteTokenizer(), ["a"], 5)


def test_a_tokenizers_ids_are_all_that_the_data_has(data):
    for name in ("train", "val"):
        split = TokenData(data).split(name, 8)
        assert split.read(0, len(split)).max() < TOKENS


def test_what_fits():
    tokenizer = CharacterTokenizer("abcd")
    for ids in (4, 5, 64):
        GPT(GPTConfig(ids, 2, 1, 1, 2)).check_tokenizer(tokenizer, "here")
    with pytest.raises(UserError, match="here: 'tokenizer' must have at most the model's 3 tokens, got 4"):
        GPT(GPTConfig(3, 2, 1, 1, 2)).check_tokenizer(tokenizer, "here")
