"""What stops a run, and what a person sees of it: Ctrl-C, TERM, a connection that drops, a narrow terminal."""

import io
import os
import pty
import signal
import sys
import time
from functools import partial

import pytest
from rich.console import Console

from fastllm import cli
from fastllm.train import TrainConfig, checkpoint
from fastllm.train.evaluation import Evaluator
from fastllm.train.report import Reporter
from fastllm.train.trainer import Trainer
from tests.train.processes import Child
from tests.train.tiny import assert_same_weights, command, rows, train

LONG = ["--max_steps=100000000", "--eval_interval=100000000"]


def wait_for(condition, child=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and (child is None or child.process.is_alive()), child and child.output()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_answered_and_saves(number, data, tmp_path):
    run = tmp_path / "run"
    child = Child(command(data, run, *LONG, "--log_interval=1"))
    wait_for(lambda: len(rows(run)) > 5, child)
    os.kill(child.pid, number)
    assert child.wait() == 128 + number
    output = child.output()
    assert "stopping after this step; again stops now\n" in output
    assert f"continue with: fastllm train --resume {run}" in output
    assert checkpoint.load_state(run, "last")["step"] > 0


def test_a_terminal_that_is_closed_saves(data, tmp_path):
    """As a connection that drops: HUP, and then nothing can be written any more."""
    run = tmp_path / "run"
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "fastllm", *command(data, run, *LONG, "--log_interval=1")])
    try:
        wait_for(lambda: len(rows(run)) > 5)
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert checkpoint.load_state(run, "last")["step"] > 0


def test_who_ignores_hup_goes_on_ignoring_it(data, tmp_path):
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert train(data, tmp_path / "run", "--max_steps=1") == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def interrupt_the_evaluation(monkeypatch, which, after):
    """Let a Ctrl-C come in the middle of an evaluation, counted from 0."""
    batches, count = Evaluator._until_stopped, [0]

    def watched(self, given):
        number, count[0] = count[0], count[0] + 1
        for index, batch in enumerate(batches(self, given)):
            assert number < which or index <= after, "it went on"
            if (number, index) == (which, after):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(Evaluator, "_until_stopped", watched)


# Two a time, of train and val: those at steps 0 and 5, and the whole split at the end.
@pytest.mark.parametrize(("which", "step"), [(0, 0), (1, 0), (3, 5), (4, 10), (6, 10)])
def test_an_evaluation_ends_at_once_and_is_made_up_for(which, step, data, tmp_path, capsys, monkeypatch):
    straight, run = tmp_path / "straight", tmp_path / "run"
    options = ["--max_steps=10", "--eval_interval=5", "--ema_decay=0"]
    assert train(data, straight, *options) == 0
    with monkeypatch.context() as patch:
        interrupt_the_evaluation(patch, which, 0)
        assert train(data, run, *options) == 130
    assert f"interrupted after step {step}: saved in" in capsys.readouterr().out
    assert checkpoint.load_state(run, "last")["step"] == step
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert "it is at step 10 already" not in capsys.readouterr().out or which == 6
    assert rows(run) == rows(straight)
    for name in ("last", "best"):
        assert_same_weights(run, straight, name)


def test_a_checkpoint_that_does_not_say_whether_an_evaluation_is_due(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    state = checkpoint.load_state(run, "last")
    del state["evaluation_due"]
    model, tokenizer = checkpoint.load_model(run, "last")
    checkpoint.save(run, "last", model, tokenizer, state)
    before = rows(run)
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert rows(run) == before


def shown(monkeypatch, width, show):
    """Return what a terminal of that width shows."""
    screen = io.StringIO()
    console = partial(Console, file=screen, force_terminal=True, width=width)
    monkeypatch.setattr("fastllm.train.report.Console", lambda **options: console())
    with Reporter(2000, 1234) as reporter:
        reporter.log({"loss": 1.5, "tokens_per_second": 46000.0, "mfu": 0.25})
        show(reporter)
        reporter._progress.refresh()
    return screen.getvalue()


@pytest.mark.parametrize(
    ("width", "there", "not_there"),
    [
        (40, ["1234/2000", "loss 1.5000"], ["MFU", "tokens/s"]),
        (60, ["1234/2000", "loss 1.5000  46,000 tokens/s  left"], ["MFU"]),
        (80, ["1234/2000", "loss 1.5000  46,000 tokens/s  MFU 25%  left"], []),
        (120, ["1234/2000", "loss 1.5000  46,000 tokens/s  MFU 25%  left", "━━━━━━━━"], []),
    ],
)
def test_a_narrow_terminal_keeps_what_matters_most(width, there, not_there, monkeypatch):
    screen = shown(monkeypatch, width, lambda reporter: None)
    assert all(text in screen for text in there)
    assert not any(text in screen for text in [*not_there, "…"])


def test_the_bar_says_what_is_going_on(monkeypatch):
    def show(reporter):
        with reporter.evaluating():
            pass
        reporter.stopping("stopping after this step")

    screen = shown(monkeypatch, 80, show)
    assert screen.index("evaluating") < screen.rindex("stopping after this step")


def test_nothing_is_drawn_below_the_last_words(data, tmp_path):
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "fastllm", *command(data, tmp_path / "run", *LONG)])
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last").exists())
    output = b""
    os.write(terminal, b"\x03")
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says so of a terminal whose other end is closed
            break
        if not piece:
            break
        output += piece
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    last = output.decode().split("interrupted after step")[-1]
    assert "step" not in last.split("--resume")[1]


def test_a_rate_that_jumps_is_told(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=10") == 0
    capsys.readouterr()
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert "(the learning rate then rises again: cosine ends at max_steps)" in capsys.readouterr().out
    assert cli.main(["train", f"--resume={run}", "--max_steps=20"]) == 0
    output = capsys.readouterr().out
    assert "with max_steps 20 instead of 10 the schedule cosine ends at another step" in output
    assert "is 0.000775 instead of 0.0001; to continue at the low rate" in output
    assert f"fastllm train --init {run} --schedule constant --learning_rate 0.0001" in output
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert "ends at another step" not in capsys.readouterr().out
    steady = tmp_path / "steady"
    assert train(data, steady, "--max_steps=10", "--schedule=constant") == 0
    assert cli.main(["train", f"--resume={steady}", "--max_steps=20"]) == 0
    assert "ends at another step" not in capsys.readouterr().out


def test_data_is_found_from_anywhere_and_its_place_stays(data, tmp_path, capsys, monkeypatch):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    monkeypatch.chdir(tmp_path)
    assert train("data", "run", "--max_steps=2") == 0
    assert TrainConfig.load(run / "config.yaml").data == data
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli.main(["train", "--resume=../run", "--max_steps=3"]) == 0
    (tmp_path / "link").symlink_to(data)
    assert cli.main(["train", "--resume=../run", "--max_steps=4", "--data=../link"]) == 0
    assert TrainConfig.load(run / "config.yaml").data == data  # still there, and where the run has it from
    data.rename(tmp_path / "moved")
    for words in (["train", f"--resume={run}", "--max_steps=5"], ["eval", str(run)]):
        assert cli.main(words) == 2
        assert f"if the data of {words[1].removeprefix('--resume=')} is elsewhere now, name it: --data" in (
            capsys.readouterr().err
        )
    assert cli.main(["train", "--resume=../run", "--max_steps=5", "--data=../moved"]) == 0
    assert TrainConfig.load(run / "config.yaml").data.samefile(tmp_path / "moved")
    old = (run / "config.yaml").read_text().splitlines()
    (run / "config.yaml").write_text("\n".join(["data: moved", *old[1:]]))  # as runs were written before
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume=run", "--max_steps=6"]) == 0
    assert TrainConfig.load(run / "config.yaml").data == tmp_path / "moved"


def test_names_that_were_given_may_come_from_an_iterator(data, tmp_path):
    config = TrainConfig.of(
        {"data": data, "out": tmp_path / "run", "n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8}
    )
    Trainer(config, given=iter(["n_layer", "n_embd"])).close()
