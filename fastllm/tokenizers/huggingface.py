"""The format of Hugging Face's tokenizers library (tokenizer.json), so that transformers' AutoTokenizer reads ours.

Each part is a step that the library offers by that name; the steps of a kind together give the ids that it gives here.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

CONFIG = "tokenizer_config.json"
SOURCE = "fastllm"  # where in it what makes the tokenizer here is
_AROUND = ("normalizer", "pre_tokenizer", "decoder")  # the steps around the model
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


class Named(NamedTuple):
    """The tokens beside a model's own: names and ids.

    Args:
        special: that no plain text becomes.
        added: that every text is searched for.
        end: the name of the special one between texts, if there is one.
    """

    special: dict[str, int]
    added: dict[str, int]
    end: str | None


def files(
    steps: dict[str, Any] | None, named: Named, source: dict[str, Any], model_max_length: int | None
) -> dict[str, bytes]:
    """Return tokenizer.json and tokenizer_config.json.

    Args:
        steps: "normalizer", "pre_tokenizer", "model" and "decoder", those that there are; None if the library has no
            steps that do the same, and then transformers is kept from taking an empty tokenizer for this one.
        named: tokens beside the model's own.
        source: what makes the tokenizer here; transformers hands it on when it saves what it has read.
        model_max_length: how many tokens the model takes, to which transformers truncates; None if not known.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast" if steps else f"fastllm-{source['kind']}",
        "clean_up_tokenization_spaces": False,
        "bos_token": named.end,
        "eos_token": named.end,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
        SOURCE: source,
    }
    result = {CONFIG: (json.dumps(settings, indent=2) + "\n").encode()}
    if steps:
        added = [{"id": id, "content": name, "special": name in named.special, "normalized": False,
                  "single_word": False, "lstrip": False, "rstrip": False}
                 for name, id in {**named.special, **named.added}.items()]  # fmt: skip
        names = (*_AROUND, "post_processor", "model")
        stored = {"version": "1.0", "added_tokens": added, **{name: steps.get(name) for name in names}}
        result["tokenizer.json"] = (json.dumps(stored, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    return result


def difference(stored: dict[str, Any], steps: dict[str, Any] | None, names: dict[str, int]) -> str:
    """Return what a tokenizer.json has otherwise than files would write it, such as tokens that were added; else "".

    Args:
        stored: the file's content.
        steps: as of files.
        names: of all tokens, with their ids.
    """
    vocab = stored["model"]["vocab"]
    theirs = dict(vocab) if isinstance(vocab, dict) else {piece: id for id, (piece, _) in enumerate(vocab)}
    theirs |= {token["content"]: token["id"] for token in stored["added_tokens"]}
    if other := theirs.items() ^ names.items():
        return f"another vocabulary, in which {sorted(name for name, _ in other)[0]!r} is added, missing or elsewhere"
    wrong = [name for name in _AROUND if steps and not _holds(stored.get(name), steps.get(name))]
    return f"another '{wrong[0]}'" if wrong else ""


def _holds(theirs: Any, ours: Any) -> bool:
    """Return whether all settings of ours are theirs; the library may write more, with their defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(_holds(theirs.get(name), value) for name, value in ours.items())
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return all(map(_holds, theirs, ours))
    return bool(theirs == ours)
