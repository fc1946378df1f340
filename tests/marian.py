"""Folders of Marian models, as OPUS-MT's are: trained sentencepiece models, a vocabulary, random weights."""

import io
import json

import sentencepiece
import torch

from tests.pairs import sentence_pairs

PAIRS = sentence_pairs(400)
ENDS = 12.0
TAGS = (">>de<<", ">>fr<<")


def sentencepiece_model(texts, vocab_size=60):
    """Return a model's bytes, with the library's own normalisation, as Marian's have."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=vocab_size, bos_id=-1, minloglevel=2
    )
    return out.getvalue()


def write_tokenizer(folder, apart=False):
    """Write the files of a tokenizer, of English to German; return the sizes of both vocabularies."""
    folder.mkdir(exist_ok=True)
    pieces = {}
    for side, texts in (("source", [target for _, target in PAIRS]), ("target", [source for source, _ in PAIRS])):
        model = sentencepiece_model(texts)
        (folder / f"{side}.spm").write_bytes(model)
        sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces[side] = [sp.id_to_piece(id) for id in range(sp.vocab_size())]
    if not apart:
        pieces = {"source": [*dict.fromkeys(pieces["source"] + pieces["target"])]}
    sizes = []
    for side, own in pieces.items():
        names = ["</s>", "<unk>", *(name for name in own if not name.startswith("<")), *TAGS, "<pad>"]
        sizes.append(len(names))
        file = "vocab.json" if side == "source" else "target_vocab.json"
        (folder / file).write_text(json.dumps({name: id for id, name in enumerate(names)}))
    settings = {"tokenizer_class": "MarianTokenizer", "model_max_length": 64, "separate_vocabs": apart}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sizes[0], sizes[-1]


def write_model(folder, sizes, **settings):
    """Write a random MarianMTModel for vocabularies of these sizes, whose texts end sooner or later; return it."""
    from transformers import MarianConfig, MarianMTModel

    source, target = sizes
    options = {
        "vocab_size": source, "decoder_vocab_size": target, "max_position_embeddings": 64, "encoder_layers": 3,
        "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "d_model": 32, "activation_function": "swish", "scale_embedding": True,
        "decoder_start_token_id": target - 1, "pad_token_id": target - 1, "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(3)
    model = MarianMTModel(MarianConfig(**{**options, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide a mix-up
            parameter.normal_(1.0 if parameter.shape == (32,) else 0.0, 0.2)
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, 0] = ENDS
        model.final_logits_bias[0, -1] = 9.0  # the token that must never be written
    model.save_pretrained(folder)
    return model
