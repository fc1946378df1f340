"""The format of Hugging Face's tokenizers library (tokenizer.json), so that transformers' AutoTokenizer reads ours.

Each part is a step that the library offers by that name; the steps of a kind together give the ids that it gives here.
"""

import json
from collections.abc import Iterable
from typing import Any

# How a space is written inside of sentencepiece and of what imitates it.
SPACE = "\u2581"
FUSE: dict[str, Any] = {"type": "Fuse"}  # join the tokens' texts
BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPACES_WRITTEN: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
SPACES_READ: dict[str, Any] = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
BYTES_READ: dict[str, Any] = {"type": "ByteFallback"}  # tokens such as <0x0A>


def byte_pair_model(vocab: dict[str, int], merges: Iterable[tuple[str, str]] = (), **options: Any) -> dict[str, Any]:
    """Return a byte-pair encoding; without merges it gives a token a character."""
    return {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges], **options}


def files(steps: dict[str, Any] | None, special_tokens: dict[str, int], end: str | None, kind: str) -> dict[str, bytes]:
    """Return tokenizer.json and tokenizer_config.json.

    Args:
        steps: "normalizer", "pre_tokenizer", "model" and "decoder", those that there are; None if the library has no
            steps that do the same, and then transformers is kept from taking an empty tokenizer for this one.
        special_tokens: names and ids.
        end: the name of the token between texts.
        kind: the tokenizer's.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast" if steps else f"fastllm-{kind}",
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
    }
    result = {"tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}
    if steps:
        added = [{"id": id, "content": name, "special": True, "normalized": False, "single_word": False,
                  "lstrip": False, "rstrip": False} for name, id in special_tokens.items()]  # fmt: skip
        names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
        stored = {"version": "1.0", "added_tokens": added, **{name: steps.get(name) for name in names}}
        result["tokenizer.json"] = (json.dumps(stored, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    return result
