"""Small tokenizers in the styles of other makers, as the tokenizer.json that these publish."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.tokenizers.conftest import TEXT

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
LEARNT = [TEXT, "It's 2024: 1234567 + 89 = x\n\n    if a == 10:\n", "漢字 café 👩\u200d💻\n"] * 9
SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "mistral": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
}
STYLES = tuple(SPECIAL)
ROLES = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "smollm": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def make(style):
    """Return the library's tokenizer in a style."""
    if style in ("llama2", "mistral"):
        return _with_bytes_beside(style)
    model = tokenizers.Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style == "smollm")
    pattern = {"llama3": LLAMA3, "qwen": QWEN}.get(style)
    cut = (
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        if pattern
        else pre_tokenizers.Digits(individual_digits=True)
    )
    model.pre_tokenizer = pre_tokenizers.Sequence([cut, words])
    model.decoder = decoders.ByteLevel()
    if style == "qwen":
        model.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(LEARNT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    model.add_special_tokens(SPECIAL[style])
    if style == "qwen":
        model.add_tokens(["<tool_call>", "<think>"])
    if style == "llama3":
        model.post_processor = _beginning("<|begin_of_text|>", model)
    return model


def _with_bytes_beside(style):
    """As converted from sentencepiece: a space in front of the text, and tokens for the bytes of the rest."""
    model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if style == "llama2":  # of every part of a text, between special tokens
        model.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:  # at the beginning alone
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(steps)
    words = [word for text in LEARNT for word in text.replace(" ", " \u2581").split(" ")]
    special = [*SPECIAL[style], *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, limit_alphabet=60, max_token_length=8)
    plain = tokenizers.Tokenizer(models.BPE())
    plain.train_from_iterator(words, trainer)
    learnt = json.loads(plain.to_str())["model"]
    stored = json.loads(model.to_str())
    stored["model"] |= {"vocab": learnt["vocab"], "merges": learnt["merges"]}
    model = tokenizers.Tokenizer.from_str(json.dumps(stored))
    model.add_special_tokens(SPECIAL[style])
    model.post_processor = _beginning("<s>", model)
    return model


def _beginning(name, model):
    return processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, model.token_to_id(name))]
    )


def write(style, folder, **settings):
    """Write tokenizer.json and tokenizer_config.json as a maker does."""
    folder.mkdir(parents=True, exist_ok=True)
    make(style).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **ROLES[style], **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
