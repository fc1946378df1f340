"""Translation of texts: what comes out depends on the text alone, nothing is lost, faults are named."""

import pytest
import torch

import fastllm
from fastllm.errors import UserError
from fastllm.generation import attention_pages, generate, score, translation
from fastllm.generation.translation import PLACEHOLDERS, Translation, iterate_translations, loop, translate
from fastllm.models import Transformer, TransformerConfig
from fastllm.tokenizers import PairTokenizer, SentencePieceTokenizer
from tests.pairs import reversed_words

TEXT = "Das Haus ist rot. Ein Baum steht im Wald, {0} und die Katze läuft. %s http://a.b/c <b>x</b>\n"


@pytest.fixture(scope="module")
def tokenizer():
    pairs = reversed_words(300)
    texts = [f" {text}" for pair in pairs for text in pair] + [f" {TEXT}"] * 9
    return PairTokenizer(SentencePieceTokenizer.train(texts, 310, model_type="bpe", control_symbols=["<2en>"]))


def make_model(tokenizer, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {
        "context_length": 40,
        "n_encoder_layer": 2,
        "n_decoder_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "dropout": 0.1,
    }
    model = Transformer(TransformerConfig(tokenizer.vocab_size, **{**sizes, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


TEXTS = [
    "Haus",
    "Das Haus ist rot.",
    "",
    "Ein Baum steht im Wald und die Katze läuft.",
    "Haus",
    "blau " * 9,
    "Katze rot",
]


def told(found):
    return [(one.text, one.score, one.logprob, one.ids, one.faults) for one in found]


def test_batches_change_nothing(model, tokenizer):
    together = told(translate(model, tokenizer, TEXTS))
    assert told(translate(model, tokenizer, TEXTS, batch_tokens=1)) == together
    assert told(translate(model, tokenizer, TEXTS * 30)) == together * 30
    assert [told(translate(model, tokenizer, [text]))[0] for text in TEXTS] == together
    assert together[0] == together[4]
    assert model.training  # put back


def test_n_best_changes_nothing(model, tokenizer):
    one, three = (translate(model, tokenizer, TEXTS, n_best=n) for n in (1, 3))
    assert told(one) == told(three)
    for found in three:
        if found.source:
            assert len(found.n_best) == 3 and found.n_best[0].text == found.text
            scores = [each.score for each in found.n_best]
            assert scores == sorted(scores, reverse=True)


def test_threads_change_nothing(model, tokenizer):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(told(translate(model, tokenizer, TEXTS)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_greedy_is_what_generate_gives(model, tokenizer):
    for text in ("Haus rot", "Katze"):
        source = tokenizer.encode_source(text).tolist()
        limit = 2 * len(source) + 16
        room = min(limit, model.context_length - 1)
        expected = list(
            generate(model.reading([source]), [tokenizer.start], room, stop=[tokenizer.end], temperature=0,
                     vocabulary=tokenizer.vocab_size)
        )  # fmt: skip
        assert translate(model, tokenizer, [text], num_beams=1)[0].ids == expected


def test_results_come_in_order_and_early(model, tokenizer):
    found = iterate_translations(model, tokenizer, TEXTS * 400, num_beams=1)
    first = [next(found) for _ in range(len(TEXTS))]
    assert [one.source for one in first] == TEXTS


def test_empty_and_blank_texts_stay(model, tokenizer):
    found = translate(model, tokenizer, ["", "  ", "\n"])
    assert [one.text for one in found] == ["", "  ", "\n"]
    assert all(one.parts == 0 and not one.faults for one in found)
    assert translate(model, tokenizer, []) == []


def test_long_texts_are_cut_and_joined(model, tokenizer):
    long = "Das Haus ist rot. Ein Baum steht im Wald.\n  Die Katze läuft, " + "und läuft " * 20
    (found,) = translate(model, tokenizer, [long], num_beams=2)
    assert found.parts > 4
    lines = found.text.split("\n")
    assert len(lines) == 2 and lines[1].startswith("  ") and found.text.endswith(" ")
    each = ["Das Haus ist rot.", "Ein Baum steht im Wald."]
    expected = " ".join(one.text for one in translate(model, tokenizer, each, num_beams=2))
    (split,) = translate(model, tokenizer, [" ".join(each)], num_beams=2, split_sentences=True)
    assert split.text == expected and split.parts == 2
    (shorter,) = translate(model, tokenizer, [" ".join(each)], num_beams=2, longest=20)
    assert shorter.parts >= 2


def test_a_prefix_begins_each_translation(model, tokenizer):
    found = translate(model, tokenizer, ["Haus", "rot"], prefix="the cat", n_best=2)
    assert all(each.text.startswith("the cat") for one in found for each in one.n_best)
    begin = tokenizer.encode_target("the cat")[:-1].tolist()
    assert found[0].ids[: len(begin)] == begin
    apart = translate(model, tokenizer, ["Haus", "rot"], prefix=["run", ""])
    assert apart[0].text.startswith("run")
    assert told(apart[1:]) == told(translate(model, tokenizer, ["rot"]))


@pytest.mark.parametrize("text", ["{0} Haus", "%s rot %s", "Siehe http://a.b/c hier", "ein <b>Haus</b>", "an a.b@c.de"])
def test_placeholders_survive(model, tokenizer, text):
    plain, kept = (translate(model, tokenizer, [text], keep_placeholders=kept)[0] for kept in (False, True))
    for one in PLACEHOLDERS.findall(text):
        assert kept.text.count(one) >= text.count(one)
    assert not any(fault.startswith("missing") for fault in kept.faults)
    assert plain.source == kept.source == text


def test_a_glossary_is_kept(model, tokenizer):
    glossary = {"Haus": "red oven", "Wald": "wood"}
    texts = ["Das Haus ist rot.", "Katze", "Haus im Wald"]
    found = translate(model, tokenizer, texts, glossary=glossary)
    assert "red oven" in found[0].text and "red oven" in found[2].text and "wood" in found[2].text
    assert told(found[1:2]) == told(translate(model, tokenizer, ["Katze"]))  # it is not in there
    plain = translate(model, tokenizer, ["Katze rot"])
    had = {"Katze": plain[0].text.strip()[:3]}  # what a translation has anyway changes nothing
    assert told(translate(model, tokenizer, ["Katze rot"], glossary=had)) == told(plain)


def test_what_did_not_survive_is_told(model, tokenizer):
    (found,) = translate(model, tokenizer, ["Haus {0}"], max_length=1)
    assert "missing: '{0}'" in found.faults and "length" in found.faults


def test_faults_are_named(monkeypatch, tokenizer):
    assert loop("a b a b a b a b c") == "a b"
    assert loop("a a a b a a a") == ""
    assert loop("Das ist gut") == ""
    model = make_model(tokenizer)
    decode = PairTokenizer.decode_target
    for text, fault in (("", "empty"), ("rot rot rot rot", "loop: 'rot'")):
        monkeypatch.setattr(PairTokenizer, "decode_target", lambda self, ids, text=text: text)
        assert fault in translate(model, tokenizer, ["Haus"])[0].faults
    monkeypatch.setattr(PairTokenizer, "decode_target", decode)
    assert "length" in translate(model, tokenizer, ["Das Haus ist rot."], max_length=1)[0].faults


def test_tags(model, tokenizer):
    plain, tagged = translate(model, tokenizer, ["Haus rot", "<2en> Haus rot"])
    assert plain.logprob != tagged.logprob
    (cut,) = translate(model, tokenizer, ["<2en> " + "Das Haus ist rot. " * 6], num_beams=1)
    assert cut.parts > 1


def test_length_penalties_and_beams(model, tokenizer):
    scores = {alpha: translate(model, tokenizer, ["Das Haus ist rot."], alpha=alpha)[0] for alpha in (0.0, 0.6)}
    assert scores[0.0].score == scores[0.0].logprob
    length = len(scores[0.6].ids) + ("length" not in scores[0.6].faults)
    assert scores[0.6].score == pytest.approx(scores[0.6].logprob / ((5 + length) / 6) ** 0.6)
    power = translate(model, tokenizer, ["Das Haus ist rot."], length_penalty="power")[0]
    length = len(power.ids) + ("length" not in power.faults)
    assert power.score == pytest.approx(power.logprob / length**0.6)


def test_where_it_looks(model, tokenizer, tmp_path):
    (found,) = translate(model, tokenizer, ["Das <b> ist rot & blau."], alignments=True, keep_placeholders=False)
    (alignment,) = found.alignments
    assert alignment.weights.shape == (len(alignment.target), len(alignment.source))
    assert "".join(alignment.source[:-1]).strip() == "Das <b> ist rot & blau."
    torch.testing.assert_close(alignment.weights.sum(1), torch.ones(len(alignment.target)))
    attention_pages.draw_attention(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    attention_pages.write_page(found, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<b>" not in page.split("<section>")[1] and "&lt;b&gt;" in page
    assert page.count("<td ") == alignment.weights.numel()
    assert "http" not in page  # it needs nothing else
    with pytest.raises(UserError, match="has no alignments: translate a text with alignments=True"):
        attention_pages.write_page(translate(model, tokenizer, ["Haus"])[0], tmp_path / "b.html")
    with pytest.raises(UserError, match="cannot draw"):
        attention_pages.draw_attention(found, tmp_path / "a.doc")


def test_it_is_a_function_of_the_package(model, tokenizer):
    assert fastllm.translate is translation.translate
    assert isinstance(fastllm.translate(model, tokenizer, ["Haus"])[0], Translation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": "Haus"}, "'texts' must be a list of texts, got .*put one text in a list"),
        ({"texts": ["Haus", 3]}, "got .* at position 1"),
        ({"num_beams": 0}, "'num_beams' must be at least 1, got 0"),
        ({"n_best": 5}, r"'n_best' must be at most num_beams \(4\), got 5"),
        ({"length_penalty": "wu"}, "'length_penalty' must be one of gnmt, power, got 'wu'"),
        ({"alpha": float("nan")}, "'alpha' must be finite"),
        ({"max_length": 41}, "'max_length' must be at most the model's 40 tokens, got 41"),
        ({"longest": 0}, "'longest' must be at least 1"),
        ({"prefix": ["a", "b"]}, "'prefix' must be a text, or one for each of the 1 texts"),
        ({"prefix": "the cat " * 30}, "'prefix' must have at most 38 tokens for this model"),
        ({"glossary": {"": "x"}}, "must not have an empty phrase"),
    ],
)
def test_wrong_input(options, message, model, tokenizer):
    arguments = {"texts": ["Haus"], **options}
    with pytest.raises((UserError, TypeError), match=message):
        translate(model, tokenizer, **arguments)


def test_a_tokenizer_that_is_not_the_models(model, tokenizer):
    other = make_model(tokenizer, n_embd=16)
    other.config.vocab_size = 5
    with pytest.raises(UserError, match="'tokenizer' must have at most the model's 5 tokens"):
        translate(other, tokenizer, ["Haus"])
    with pytest.raises(TypeError, match="'tokenizer' must be"):
        translate(model, tokenizer.target, ["Haus"])
    with pytest.raises(UserError, match="translates sources, and continues nothing without them"):
        list(generate(model, [1, 2], 3))


def test_scores_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog barks"]
    scores, signatures = score(texts, references)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert "tok:13a" in signatures["bleu"]
    with pytest.raises(UserError, match="one for each of the 2 translations, at least one, got 1"):
        score(texts, references[:1])
