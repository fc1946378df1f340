"""Conversations: what the model is told, what streams, and what stays when an answer is broken off."""

import json

import pytest

from fastllm.errors import UserError
from fastllm.generation import Chat, Sampling, generate
from fastllm.tokenizers import ByteTokenizer, train_tokenizer
from tests.generation.models import small_model

TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def tokenizer():
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def model(tokenizer):
    return small_model("llama", tokenizer.vocab_size, 128)


def told(messages):
    return "".join(f"{m['role'][0]}:{m['content']}<|endoftext|>" for m in messages)


def test_the_model_is_told_all_that_was_said(model, tokenizer):
    chat = Chat(model, tokenizer, system="be brief", max_new_tokens=9, temperature=0)
    for question in ("hi", "and?"):
        asked = [*chat.messages, {"role": "user", "content": question}]
        answer = "".join(chat.say(question))
        prompt = tokenizer.encode(told(asked) + "a:", allow_special=True)
        expected = list(generate(model, prompt, 9, temperature=0, stop=[tokenizer.end_of_text]))
        assert answer == tokenizer.decode(expected)
        assert chat.messages == [*asked, {"role": "assistant", "content": answer}]
    assert chat.left_out == 0


def test_an_answer_ends_where_the_template_ends_one(tokenizer, monkeypatch):
    """Not only at the end of all text: Llama 3 ends an answer with a token of its own."""
    tokenizer.chat_template = TEMPLATE.replace("<|endoftext|>", "~")
    tokenizer.special_tokens = {**tokenizer.special_tokens, "~": ord("~")}
    model, written = small_model("llama", tokenizer.vocab_size, 64), iter("yes~no~")
    monkeypatch.setattr(Sampling, "draw", lambda self, logits, generator, seen: (ord(next(written)), 0.0))
    chat = Chat(model, tokenizer, max_new_tokens=50)
    assert "".join(chat.say("well?")) == "yes"
    assert chat.messages[-1]["content"] == "yes"


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=30, seed=1)
    pieces = chat.say("hello")
    some = next(pieces) + next(pieces)
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": some}
    assert len("".join(chat.say("go on"))) > 0
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_the_oldest_messages_are_left_out_when_it_gets_long(model, tokenizer):
    chat = Chat(model, tokenizer, system="S", max_new_tokens=20, seed=0)
    for number in range(8):
        "".join(chat.say(f"message {number}"))
    assert chat.left_out >= 2 and chat.left_out % 2 == 0
    assert len(chat.messages) == 17  # nothing is forgotten
    ids, left_out = chat._fitting(chat.messages[:-1])
    text = tokenizer.decode(ids)
    assert text.startswith("s:S<|endoftext|>u:message") and text.endswith("u:message 7<|endoftext|>a:")
    assert len(ids) + 20 <= 128 and left_out == chat.left_out


def test_a_message_longer_than_the_context_is_refused_and_nothing_is_lost(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=5, seed=0)
    "".join(chat.say("hi"))
    before = list(chat.messages)
    with pytest.raises(UserError, match=r"the message has 131 tokens with .* context has 128, answer included"):
        chat.say("x" * 126)
    assert chat.messages == before


def test_seeds_and_reset(model, tokenizer):
    answers = []
    for _ in range(2):
        chat = Chat(model, tokenizer, seed=3, max_new_tokens=12)
        answers.append(["".join(chat.say("hi")) for _ in range(2) if not chat.reset()])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]  # the next seed
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_save(model, tokenizer, tmp_path):
    chat = Chat(model, tokenizer, seed=3, max_new_tokens=4)
    "".join(chat.say("é"))
    chat.save(tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text(encoding="utf-8")) == chat.messages
    with pytest.raises(UserError, match="cannot write"):
        chat.save(tmp_path / "chat.json" / "below")


def test_refuses(model, tokenizer):
    with pytest.raises(UserError, match="the model has no chat template"):
        Chat(model, train_tokenizer("characters", ["abc"]))
    with pytest.raises(UserError, match="'max_new_tokens' must be at least 1, got 0"):
        Chat(model, tokenizer, max_new_tokens=0)
    with pytest.raises(TypeError, match="'system' must be a str, got int 3"):
        Chat(model, tokenizer, system=3)
    with pytest.raises(UserError, match="'tokenizer' must have at most the model's 5 tokens"):
        Chat(small_model("llama", 5), tokenizer)
    chat = Chat(model, tokenizer)
    with pytest.raises(UserError, match="'text' must not be empty"):
        chat.say("")
    with pytest.raises(TypeError, match="'text' must be a str, got None"):
        chat.say(None)
    tokenizer.chat_template = "{{ raise_exception('no system prompt, please') }}"
    with pytest.raises(UserError, match="no system prompt, please"):
        Chat(model, tokenizer)
