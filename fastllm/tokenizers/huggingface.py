"""The format of Hugging Face's tokenizers library (tokenizer.json), so that transformers' AutoTokenizer reads ours.

Each part is a step that the library offers by that name; the steps of a kind together give the ids that it gives here.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fastllm.errors import UserError, describe
from fastllm.tokenizers.storage import read_json, read_text

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
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
        roles: names by their roles, such as "eos_token".
        starts: whether the one that is "bos_token" goes in front of every text; None leaves it to other files.
    """

    special: dict[str, int]
    added: dict[str, int]
    roles: dict[str, str]
    starts: bool | None


def settings_file(named: Named, model_max_length: int | None, chat_template: str | None, **others: Any) -> bytes:
    """Return tokenizer_config.json.

    Args:
        named: the tokens that it names.
        model_max_length: how many tokens the model takes, to which transformers truncates; None if not known.
        chat_template: in Jinja, if there is one.
        others: settings beside these.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": None,
        **named.roles,
        **({} if named.starts is None else {"add_bos_token": named.starts}),
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
        **({} if chat_template is None else {"chat_template": chat_template}),
        **others,
    }
    return (json.dumps(settings, indent=2) + "\n").encode()


def steps_file(steps: dict[str, Any], named: Named) -> bytes:
    """Return tokenizer.json.

    Args:
        steps: "normalizer", "pre_tokenizer", "model" and "decoder", those that there are.
        named: tokens beside the model's own.
    """
    added = [{"id": id, "content": name, "special": name in named.special, "normalized": False,
              "single_word": False, "lstrip": False, "rstrip": False}
             for name, id in {**named.special, **named.added}.items()]  # fmt: skip
    names = (*_AROUND, "post_processor", "model")
    stored = {"version": "1.0", "added_tokens": added, **{name: steps.get(name) for name in names}}
    return (json.dumps(stored, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def difference(stored: dict[str, Any], steps: dict[str, Any] | None, names: dict[str, int]) -> str:
    """Return how a tokenizer.json differs from what steps_file writes, such as by tokens that were added; else "".

    Args:
        stored: the file's content.
        steps: as of steps_file.
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


class Settings(NamedTuple):
    """What the files beside a tokenizer from elsewhere say.

    Attributes:
        roles: names of tokens by their roles, such as "bos_token".
        starts: whether "bos_token" goes in front of every text; None if nothing is said.
        chat_template: in Jinja; the default one where there are several, or else the first.
        added: names of tokens beside a model's own, with their ids and whether they are special.
    """

    roles: dict[str, str]
    starts: bool | None
    chat_template: str | None
    added: dict[str, tuple[int, bool]]


def read_settings(folder: Path) -> Settings:
    """Read tokenizer_config.json and the smaller files that may be beside it, those that there are.

    Raises:
        UserError: one is damaged.
    """
    config, older, ids = (
        read_json(folder / name) if (folder / name).exists() else {}
        for name in (CONFIG, "special_tokens_map.json", "added_tokens.json")
    )
    try:
        named = {**older, **config}
        roles = {name: _content(named[name]) for name in ROLES if named.get(name)}
        decoder = config.get("added_tokens_decoder", {}).items()
        added = {token["content"]: (int(id), bool(token.get("special"))) for id, token in decoder}
        added = {**{name: (id, name in roles.values()) for name, id in ids.items()}, **added}
        return Settings(roles, config.get("add_bos_token"), _template(folder, config), added)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is damaged ({describe(error)})") from error


def _content(token: Any) -> str:
    """Return a token's name, which is written alone or with flags."""
    name = token["content"] if isinstance(token, dict) else token
    if not isinstance(name, str):
        raise TypeError(f"a token's name must be a str, got {describe(name)}")
    return name


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).exists():
        return read_text(folder / TEMPLATE)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one["name"]: one["template"] for one in template}
        template = named.get("default", next(iter(named.values()), None))
    if not isinstance(template, str | None):
        raise TypeError(f"'chat_template' must be a str, got {describe(template)}")
    return template


def first_token(stored: dict[str, Any]) -> str | None:
    """Return the token that the post-processor of a tokenizer.json puts in front of every text."""
    for step in flat(stored.get("post_processor"), "processors"):
        if step["type"] == "TemplateProcessing" and (single := step["single"]) and "SpecialToken" in single[0]:
            return single[0]["SpecialToken"]["id"]
    return None


def flat(step: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    """Return the steps that a step consists of, if it is a sequence; parts is the name of these in it."""
    if step is None:
        return []
    return [inner for part in step[parts] for inner in flat(part, parts)] if step["type"] == "Sequence" else [step]
