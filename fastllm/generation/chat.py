"""A conversation with an instruct model: its history, and answers that stream."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastllm.errors import UserError, UserValueError, check_type
from fastllm.files import write_json
from fastllm.generation.context import check_count
from fastllm.generation.text import TextGenerator, stream_ids
from fastllm.tokenizers import Tokenizer

_PROBE = "\N{SNOWMAN}"  # an answer of which no template changes a character
_LEAST = 16  # tokens of room that an answer must have


class Chat:
    """A conversation, a message after the other.

    The whole history is told to the model each time, as its chat template writes it. When history and answer together
    are longer than the model's context, the oldest messages but for the system prompt are left out of what it is told;
    `messages` keeps them all.

    Args:
        model: an instruct model, such as models.load gives.
        tokenizer: the model's, with a chat template.
        system: what the model is told before all messages; None leaves that to the template.
        max_new_tokens: of an answer, at most.
        seed: of the first answer, each further one has the next; None draws one from torch's global generator.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty, as of :class:`fastllm.generation.Sampling`.

    Attributes:
        messages: mappings of "role" and "content", from the first on.
        left_out: how many messages the model was not told the last time.

    Raises:
        UserError: the tokenizer has no chat template or does not fit the model, or an argument is out of range.

    Example:
        >>> chat = Chat(model, tokenizer, system="Answer in one sentence.")  # doctest: +SKIP
        >>> print("".join(chat.say("Why is the sky blue?")))  # doctest: +SKIP
        The sky is blue because air scatters short waves of light more than long ones.
    """

    def __init__(
        self,
        model: TextGenerator,
        tokenizer: Tokenizer,
        system: str | None = None,
        *,
        max_new_tokens: int = 512,
        seed: int | None = None,
        **sampling: Any,
    ) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                "chat: the model has no chat template: it continues texts, and was not taught to answer; use "
                "generate_text or `fastllm sample`"
            )
        if system is not None:
            check_type("chat", "system", system, str)
        check_count("max_new_tokens", max_new_tokens, 1)
        model.check_tokenizer(tokenizer, "chat")
        self._model, self._tokenizer, self._system = model, tokenizer, system
        self._max_new_tokens, self._seed, self._sampling = max_new_tokens, seed, sampling
        self._stops = _ends_of_answers(tokenizer)
        self.messages: list[dict[str, str]] = []
        self.left_out = 0
        self.reset()

    def reset(self) -> None:
        """Forget all messages but the system prompt."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.left_out = 0

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON.

        Raises:
            UserError: the file cannot be written.
        """
        write_json(Path(path), self.messages)

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to a message, piece by piece, each as soon as it is known.

        Message and answer join the history; of an answer that is broken off (the iterator is closed) what there is.

        Args:
            text: not empty.

        Raises:
            UserError: text is empty, or with the system prompt longer than the model's context.
            TypeError: text is not a str.
        """
        check_type("chat", "text", text, str)
        if not text:
            raise UserValueError("chat: 'text' must not be empty")
        asked = [*self.messages, {"role": "user", "content": text}]
        ids, left_out = self._fitting(asked)
        room = min(self._max_new_tokens, self._model.context_length - len(ids))
        pieces = stream_ids(
            self._model, self._tokenizer, ids, room, stop=self._stops, seed=self._next_seed(), **self._sampling
        )
        return self._answer(asked, left_out, pieces)

    def _answer(self, asked: list[dict[str, str]], left_out: int, pieces: Iterator[str]) -> Iterator[str]:
        told = {"role": "assistant", "content": ""}
        self.messages, self.left_out = [*asked, told], left_out
        for piece in pieces:
            told["content"] += piece
            yield piece

    def _next_seed(self) -> int | None:
        seed = self._seed
        if seed is not None:
            self._seed = seed + 1
        return seed

    def _fitting(self, messages: list[dict[str, str]]) -> tuple[list[int], int]:
        """Return the ids of what the model is told, and how many messages were left out for it."""
        longest = self._model.context_length
        head = messages[:1] if messages[0]["role"] == "system" else []
        rest = messages[len(head) :]
        wanted = min(self._max_new_tokens, longest // 2)
        for left_out in range(0, len(rest), 2):  # a question goes with its answer
            ids = self._tokenizer.encode_chat([*head, *rest[left_out:]]).tolist()
            last = len(rest) - left_out <= 2
            if len(ids) + (_LEAST if last else wanted) <= longest:
                return ids, left_out
        raise UserError(
            f"chat: the message has {len(ids)} tokens with the template around it, and the model's context has "
            f"{longest}, answer included: make it shorter"
        )


def _ends_of_answers(tokenizer: Tokenizer) -> list[Sequence[int]]:
    """Return the tokens at which an answer ends: what the template writes behind one, and the end of all text."""
    ends = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    asked = [{"role": "user", "content": _PROBE}]
    whole = tokenizer.encode_chat([*asked, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
    special = set(tokenizer.special_tokens.values())
    behind = whole.tolist()
    while behind and behind[-1] not in special:  # a newline may follow
        behind.pop()
    return [[token] for token in dict.fromkeys([*ends, *behind[-1:]])]
