"""What the command line prints, where, and what becomes of it where nothing can be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastllm
from fastllm import cli
from tests.train.conftest import data, no_pictures  # noqa: F401 - fixtures
from tests.train.tiny import command, rows, train

FULL = Path("/dev/full")


@pytest.fixture
def run(data, tmp_path):  # noqa: F811
    assert train(data, tmp_path / "run", "--max_steps=5") == 0
    return tmp_path / "run"


def into_a_full_disk(*words):
    if not FULL.is_char_device():
        pytest.skip("the system has no device that is always full")
    with FULL.open("w") as full:
        return subprocess.run(
            [sys.executable, "-m", "fastllm", *map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip


@pytest.mark.parametrize("words", [["info"], ["train", "--help"], ["--version"], ["help"], ["estimate"]], ids=" ".join)
def test_output_that_cannot_be_written(words):
    done = into_a_full_disk(*words)
    assert done.returncode == 2
    assert done.stderr == "fastllm: cannot write the output: No space left on device\n"


def test_texts_and_losses_that_cannot_be_written(run):
    for words in (["sample", run, "--prompt=t"], ["sample", run, "--prompt=t", "--num_samples=2"], ["eval", run]):
        done = into_a_full_disk(*words)
        assert done.returncode == 2
        assert done.stderr == "fastllm: cannot write the output: No space left on device\n"


def test_a_run_goes_on_where_nobody_can_be_told(data, tmp_path):  # noqa: F811
    done = into_a_full_disk(*command(data, tmp_path / "run", "--max_steps=7"))
    assert done.returncode == 0
    assert done.stderr == "fastllm: cannot write to standard output: No space left on device; the run goes on\n"
    assert rows(tmp_path / "run")[-1]["step"] == 7


def test_a_capability_that_is_none_is_told_without_a_traceback():
    environment = {**os.environ, "FASTLLM_CPU_CAPABILITY": "foo"}
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", "info"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "fastllm: FASTLLM_CPU_CAPABILITY: expected one of amx, avx512, avx2, default, got 'foo'\n"


def test_version_and_help(capsys):
    for words, text in (
        (["--version"], f"fastllm {fastllm.__version__}\n"),
        (["help"], "First steps"),
        (["help", "eval"], "perplexity"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
        assert text in capsys.readouterr().out
    assert fastllm.__version__.count(".") == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't")]
)
def test_no_memory_left_is_one_sentence(error, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("fastllm.cli.info.run", fail)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err.startswith("fastllm: there is not enough memory: use a smaller --batch_size")


def test_info_says_which_ops_have_no_kernel(monkeypatch, capsys):
    row = {"op": "gelu", "device": "cuda", "kernel": "none", "why": "not built"}
    monkeypatch.setattr("fastllm.ops.report", lambda: [row, {**row, "kernel": "fastllm", "op": "linear"}])
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert "\nOps without a kernel on cuda, not built\n    gelu " in output
    assert "\nOps on cuda: fastllm, not built\n    linear " in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --lr=1", "did you mean --learning_rate?"),
        ("train --epochs=1", "did you mean --max_steps?"),
        ("train --block-size=1", "did you mean --context_length?"),
        ("sample x --max-tokens=1", "did you mean --max_new_tokens?"),
        ("sample x --prompt --foo", "'prompt' must have a value; one that begins with - is joined to it by ="),
        ("sample x --stop a b", "unrecognized arguments: b; an option takes one value: for several texts repeat it"),
        ("train --out=\udcff", "'out' must be UTF-8"),
        ("--print_completion=shtab-bash", "'print_completion' needs the package shtab (pip install shtab) and "),
    ],
)
def test_wrong_words(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastllm", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_runs_name_is_quoted_where_it_is_to_be_copied(data, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "a b"
    assert train(data, run, "--max_steps=1") == 0
    assert f"fastllm sample '{run}'" in capsys.readouterr().out
    assert train(data, run, "--max_steps=1") == 2
    assert f"--resume '{run}', or name a new --out" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be(data, run, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "file.txt"
    file.write_text("mine")
    assert train(data, file) == 2
    assert f"train: 'out' must be a new folder, and {file} is a file" in capsys.readouterr().err
    assert cli.main(["export", str(run), str(file)]) == 2
    assert f"export: {file} is a file; name a new folder" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("")
    assert train(data, tmp_path / "folder") == 2
    assert "is not empty; name a new --out" in capsys.readouterr().err  # it is no run that could go on


def test_speed_is_in_a_log(data, tmp_path, capsys):  # noqa: F811
    assert train(data, tmp_path / "run", "--max_steps=10", "--eval_interval=5") == 0
    assert capsys.readouterr().out.count(" tokens/s") == 2


def test_without_matplotlib(data, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.undo()  # of no_pictures
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("fastllm.train.plot.importlib.util.find_spec", lambda name: None)
    assert train(data, tmp_path / "run", "--max_steps=3") == 0
    output = capsys.readouterr().out
    assert "no loss.png will be drawn, as matplotlib is missing: pip install 'fastllm[train]'" in output
    assert "curve in" not in output
    assert cli.main(["plot", str(tmp_path / "run")]) == 2
    assert "plot: pictures need matplotlib: pip install 'fastllm[train]'" in capsys.readouterr().err
