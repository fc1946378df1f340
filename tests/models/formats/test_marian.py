"""Marian's folders: the same logits, gradients and translations as MarianMTModel, and back without a changed bit."""

import json

import pytest
import torch

from fastllm import translate
from fastllm.errors import UserError
from fastllm.models import Transformer, TransformerConfig, load
from fastllm.tokenizers import load_tokenizer
from tests import marian
from tests.pairs import GERMAN, prepared, sentence_pairs

transformers = pytest.importorskip("transformers")

TEXTS = [(">>de<< " if i % 3 == 0 else "") + text for i, (_, text) in enumerate(marian.PAIRS[:20])]
KINDS = {
    "opus": {},
    "relu": {"activation_function": "relu", "scale_embedding": False},
    "gelu": {"activation_function": "gelu", "encoder_layers": 1, "decoder_layers": 3},
    "untied": {"tie_word_embeddings": False},
    "apart": {"share_encoder_decoder_embeddings": False},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    sizes = marian.write_tokenizer(path, apart=request.param == "apart")
    marian.write_model(path, sizes, **KINDS[request.param])
    return path


def theirs(folder):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def translated_by_theirs(folder, texts, beams, length=24):
    model, tokenizer = theirs(folder)
    given = tokenizer(texts, return_tensors="pt", padding=True)
    start = model.config.decoder_start_token_id
    ids = model.generate(
        **given, num_beams=beams, max_length=length + 2, do_sample=False, bad_words_ids=[[start]], length_penalty=1.0
    )
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def translated_by_ours(folder, texts, beams, length=24):
    options = {"num_beams": beams, "max_length": length, "length_penalty": "power", "alpha": 1.0}
    return translate(load(folder), load_tokenizer(folder), texts, **options)


def test_logits_loss_and_gradients(folder):
    (model, tokenizer), ours = theirs(folder), load(folder)
    given = tokenizer(TEXTS, return_tensors="pt", padding=True)
    lengths = given["attention_mask"].sum(1)
    target = torch.randint(model.config.decoder_vocab_size, (len(TEXTS), 11))
    labels = torch.randint(model.config.decoder_vocab_size, (len(TEXTS), 11))
    logits = model(**given, decoder_input_ids=target).logits
    torch.testing.assert_close(ours(given["input_ids"], target, lengths), logits, rtol=0, atol=1e-4)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = ours.loss(given["input_ids"], lengths, target, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    expected.backward()
    loss.backward()
    query, key = (model.model.encoder.layers[0].self_attn.get_submodule(f"{name}_proj") for name in "qk")
    both = torch.cat([query.weight.grad, key.weight.grad])
    torch.testing.assert_close(ours.encoder[0].attention.qkv.weight.grad[:64], both, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 4])
def test_twenty_translations(folder, beams):
    ours = translated_by_ours(folder, TEXTS, beams)
    assert [one.text for one in ours] == translated_by_theirs(folder, TEXTS, beams)
    start = load_tokenizer(folder).start
    assert not any(start in one.ids for one in ours)


def test_back_without_a_changed_bit(folder, tmp_path):
    load(folder).save_huggingface(tmp_path, load_tokenizer(folder))
    (before, tokenizer), (after, again) = theirs(folder), theirs(tmp_path)
    for name, tensor in after.state_dict().items():  # where tables are apart, the one that they share is left out
        assert torch.equal(tensor, before.state_dict()[name]), name
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert again(text_target=TEXTS)["input_ids"] == tokenizer(text_target=TEXTS)["input_ids"]
    for name in ("activation_function", "scale_embedding", "decoder_start_token_id", "max_position_embeddings"):
        assert getattr(after.config, name) == getattr(before.config, name)
    assert translated_by_theirs(tmp_path, TEXTS[:5], 2) == translated_by_theirs(folder, TEXTS[:5], 2)
    ours = [[one.text for one in translated_by_ours(path, TEXTS[:5], 2)] for path in (folder, tmp_path)]
    assert ours[0] == ours[1]


@pytest.fixture(scope="module")
def opus(tmp_path_factory):
    path = tmp_path_factory.mktemp("opus")
    marian.write_model(path, marian.write_tokenizer(path))
    return path


def test_old_files_with_every_name(opus, tmp_path):
    """Such as the first conversions wrote: pickled, shared tensors several times, tables of positions, old settings."""
    model, _ = theirs(opus)
    weights = {f"{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    assert {"lm_head.weight", "model.encoder.embed_tokens.weight"} < weights.keys()
    weights["model.encoder.embed_positions.weight"] = torch.zeros(64, 32)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    settings = json.loads((opus / "config.json").read_text())
    del settings["decoder_vocab_size"], settings["share_encoder_decoder_embeddings"]
    old = {"static_position_embeddings": True, "normalize_before": False, "add_bias_logits": False}
    (tmp_path / "config.json").write_text(json.dumps(settings | old))
    for name, tensor in load(opus).state_dict().items():
        assert torch.equal(tensor, load(tmp_path).state_dict()[name])


def own(tmp_path, **settings):
    """Return a random model of ours, with a tokenizer of a few sentences."""
    tokenizer = load_tokenizer(prepared(tmp_path / "data", sentence_pairs(300), vocab_size=320))
    torch.manual_seed(0)
    config = TransformerConfig.preset("micro", vocab_size=tokenizer.vocab_size, **{"norm_first": False, **settings})
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model, tokenizer


@pytest.mark.parametrize("positions", ["sinusoidal", "sinusoidal_halves"])
@pytest.mark.parametrize("share", ["all", "target", "none"])
def test_our_own_models_become_marians(positions, share, tmp_path):
    """Channels are put in Marian's order where positions alternate; the tokenizer's ids are the same."""
    model, tokenizer = own(tmp_path, positions=positions, share_embeddings=share)
    out = tmp_path / "out"
    model.save_huggingface(out, tokenizer)
    other, theirs_ = theirs(out)
    texts = [text for text, _ in sentence_pairs(20)] + [GERMAN[0], "two  spaces", "Zeichen, die fehlen: 漢字"]
    ids = [tokenizer.encode_source(text).tolist() for text in texts]
    assert theirs_(texts)["input_ids"] == ids
    source = torch.tensor([ids[0]])
    target = torch.tensor([[tokenizer.start, 9, 30, 4]])
    expected = other(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(model(source, target), expected, rtol=0, atol=2e-5)
    ours = translate(model, tokenizer, texts[:20], num_beams=1, max_length=24)
    assert [one.text.strip() for one in ours] == translated_by_theirs(out, texts[:20], 1)
    again = load(out)  # and as it was
    torch.testing.assert_close(again(source, target), expected, rtol=0, atol=2e-5)
    assert load_tokenizer(out).to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_first": True}, "'norm_first' must be False in a Marian model, got True"),
        ({"final_norm": True}, "'final_norm' must be False"),
        ({"bias": False}, "'bias' must be True"),
        (
            {"positions": "learned"},
            "'positions' must be sinusoidal or sinusoidal_halves in a Marian model, got learned",
        ),
        ({"activation": "swiglu"}, "'activation' must be silu or relu or gelu or gelu_tanh .* got swiglu"),
    ],
)
def test_models_that_marian_cannot_be(settings, message, tmp_path):
    model, tokenizer = own(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        model.save_huggingface(tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": "wide"}, "'d_model' must be a whole number, got str 'wide'"),
        ({"normalize_before": True}, "'normalize_before' must be False, got True"),
        ({"decoder_ffn_dim": 96}, r"'decoder_ffn_dim' must be as the encoder's \(encoder_ffn_dim, 48\), got 96"),
        ({"activation_function": "tanh"}, "'activation_function' must be one of swish, .* got 'tanh'"),
        ({"decoder_vocab_size": 7}, "'decoder_vocab_size' must be vocab_size"),
        ({"encoder_layers": 4}, "the weights lack 'model.encoder.layers.3.self_attn.q_proj.weight'"),
        ({"decoder_layers": 1}, "a Marian model of these settings has no 'model.decoder.layers.1"),
        ({"encoder_ffn_dim": 40, "decoder_ffn_dim": 40}, r"'model.encoder.layers.0.fc1.weight' must have the shape"),
    ],
)
def test_configs_that_cannot_be(opus, tmp_path, change, message):
    settings = json.loads((opus / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    (tmp_path / "model.safetensors").symlink_to(opus / "model.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in f"{caught.value}" and "\n" not in f"{caught.value}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"lm_head.weight": w["model.shared.weight"] + 1}), "'lm_head.weight' must be equal to"),
        (lambda w: [w.pop(name) for name in list(w) if "shared" in name or "embed" in name or "lm" in name],
         "the weights lack 'model.shared.weight'"),
        (lambda w: w.update({"final_logits_bias": torch.zeros(1, 5)}), r"'final_logits_bias' must have the shape"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(opus, tmp_path, change, message):
    weights = {name: tensor.clone() for name, tensor in theirs(opus)[0].state_dict().items()}
    change(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((opus / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
