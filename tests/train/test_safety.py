"""Nothing that was reported saved is lost: kills, damage, full and read-only disks, two trainers on one run."""

import errno
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fastllm import cli, files
from fastllm.errors import UserError
from fastllm.train import TrainConfig, checkpoint
from fastllm.train.trainer import Trainer
from tests.models.kinds import EVERY_TRAINED, TRAINED
from tests.train.processes import Child, start_server
from tests.train.tiny import TINY, assert_same_weights, command, rows, train, train_until, weights

# Everything with a state of its own.
FULL = ["--micro_batch_size=3", "--ema_decay=0.9", "--keep_checkpoints=2", "--schedule=wsd", "--patience=50"]


@EVERY_TRAINED
def test_resume_equals_an_undisturbed_run(model, data, tmp_path):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    assert train(data, straight, *FULL, *TRAINED[model], "--max_steps=30", "--eval_interval=10") == 0
    config = TrainConfig.load(straight / "config.yaml")
    config.out = halfway
    train_until(config, 7)
    train_until(config, 20, "last")  # on an evaluation's step, which must not be missed
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    assert_same_weights(straight, halfway)
    assert_same_weights(straight, halfway, "best")
    assert_same_weights(straight, halfway, "ema")
    evaluations = [[row for row in rows(run) if "val_loss" in row] for run in (straight, halfway)]
    assert evaluations[0] == evaluations[1]
    assert rows(straight)[-1] == rows(halfway)[-1]


def test_a_resumed_run_keeps_what_it_was_told_anew(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=4", "--patience=3") == 0
    assert cli.main(["train", f"--resume={run}", "--max_steps=2", "--n_layer=3"]) == 2  # refused: nothing is stored
    assert TrainConfig.load(run / "config.yaml").max_steps == 4
    assert cli.main(["train", f"--resume={run}", "--max_steps=40", "--patience=0"]) == 0  # 0 is the default
    stored = TrainConfig.load(run / "config.yaml")
    assert (stored.max_steps, stored.patience) == (40, 0)


def test_an_interrupted_resume_goes_on_to_its_new_end(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=4") == 0
    take = Trainer._train_step

    def interrupted(self):
        take(self)
        if self.step == 20:
            self.request_stop()

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    assert cli.main(["train", f"--resume={run}", "--max_steps=40"]) == 130
    monkeypatch.undo()
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert checkpoint.load_state(run, "last")["step"] == 40


def test_a_setting_given_at_its_default_is_given(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=4", "--learning_rate=3e-3") == 0
    assert cli.main(["train", f"--resume={run}", "--learning-rate=1e-3"]) == 2
    assert "leave out --learning_rate" in capsys.readouterr().err
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: 0.001\n")
    assert cli.main(["train", f"--resume={run}", f"--config={file}"]) == 2
    assert "leave out --learning_rate" in capsys.readouterr().err


def test_a_run_taken_back_to_its_best_is_there_at_once(data, tmp_path):
    run = tmp_path / "run"
    options = ["--learning_rate=0", "--min_learning_rate=0", "--max_steps=10", "--eval_interval=5"]
    assert train(data, run, *options) == 0  # nothing is learnt: the first is the best
    Trainer(TrainConfig.load(run / "config.yaml"), "best").close()  # killed before it saved again
    assert checkpoint.load_state(run, "last")["step"] == 0
    assert {row["step"] for row in rows(run)} == {0}
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert [row["step"] for row in rows(run) if "val_loss" in row] == [0, 5, 10]


def test_a_finished_run_resumed_says_the_same_once(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=10", "--eval_interval=5") == 0
    before = rows(run)
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert rows(run) == before


def kill_until_done(data, run, kills, longest, *options):
    """Start or resume a run and kill it, again and again, then let it end; return how often it was killed."""
    chance, killed = random.Random(kills), 0
    for _ in range(kills):
        resuming = (run / "config.yaml").exists()
        child = Child(["train", f"--resume={run}"] if resuming else command(data, run, *options))
        deadline = time.monotonic() + chance.uniform(0.05, longest)
        while time.monotonic() < deadline and child.process.is_alive():
            time.sleep(0.002)
        killed += child.process.is_alive()
        child.process.kill()
        child.process.join()
        assert child.process.exitcode in (0, -9), child.output()
    last = Child(["train", f"--resume={run}"] if (run / "config.yaml").exists() else command(data, run, *options))
    assert last.wait(seconds=1200) == 0, last.output()
    return killed


def check_kills(data, tmp_path, kills, steps, model="gpt"):
    options = [*FULL, *TRAINED[model], f"--max_steps={steps}", "--eval_interval=4", "--log_interval=1"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    start_server()
    started = time.monotonic()
    assert Child(command(data, straight, *options)).wait(seconds=120 + steps) == 0
    # Kills fall everywhere: into the start, a step, a save. Within the time of 20 steps, or it would be over too soon.
    assert kill_until_done(data, killed, kills, (time.monotonic() - started) * 20 / steps, *options) >= 3
    for name in ("last", "best", "ema"):
        assert_same_weights(straight, killed, name)
    assert rows(straight) == rows(killed)  # nothing twice, nothing missing, nothing cut off
    assert [folder.name for folder in checkpoint.kept(straight)] == [folder.name for folder in checkpoint.kept(killed)]


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_killed_ten_times(model, data, tmp_path):
    check_kills(data, tmp_path, 10, steps=60, model=model)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [50, 500])
def test_killed_often(kills, data, tmp_path):
    check_kills(data, tmp_path, kills, steps=6 * kills)


def test_a_run_killed_before_its_first_checkpoint_starts_again(data, tmp_path, capsys):
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert train(data, straight, "--max_steps=5") == 0
    run.mkdir()
    (run / ".config.yaml.tmp").write_text("n_l")  # killed before there was a setting
    assert train(data, run, "--max_steps=5") == 0
    for name in ("checkpoints", "metrics.jsonl"):
        os.rename(run / name, tmp_path / name)
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert "the run had not saved anything yet" in capsys.readouterr().out
    assert_same_weights(straight, run)


def test_a_run_from_other_weights_that_had_not_saved_begins_as_it_did(data, tmp_path):
    first, run = tmp_path / "first", tmp_path / "run"
    assert train(data, first, "--max_steps=1", *TRAINED["llama"], "--context_length=4") == 0
    words = [f"--init={first}", "--context_length=8", "--rope_scaling=yarn", "--rope_factor=2", "--dropout=0.2"]
    common = [f"--data={data}", "--max_steps=2", "--batch_size=4", "--eval_batches=1", "--threads=1"]
    assert cli.main(["train", *common, f"--out={run}", *words]) == 0
    before, weights_before = TrainConfig.load(run / "config.yaml"), weights(run)
    for name in ("checkpoints", "metrics.jsonl"):
        os.rename(run / name, tmp_path / name)
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert TrainConfig.load(run / "config.yaml") == before
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights_before.items())


def test_killed_between_the_two_renames(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    folder = checkpoint.folder_of(run, "last")
    os.rename(folder, files.previous(folder))
    assert checkpoint.load_state(run, "last")["step"] == 5
    assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 0
    assert checkpoint.load_state(run, "last")["step"] == 6


def test_a_checkpoint_of_another_version(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=2") == 0
    model, tokenizer = checkpoint.load_model(run, "last")
    checkpoint.save(run, "last", model, tokenizer, {"version": 1, "step": 2})
    assert cli.main(["train", f"--resume={run}", "--max_steps=3"]) == 2
    assert "was written by another version of fastllm" in capsys.readouterr().err


def test_a_line_of_metrics_that_was_cut_off(data, tmp_path):
    straight, run = tmp_path / "straight", tmp_path / "run"
    for folder in (straight, run):
        assert train(data, folder, "--max_steps=10", "--eval_interval=5") == 0
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(text + b'{"step": 10, "lo\xc3')
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert rows(run) == rows(straight)


@pytest.mark.parametrize("damage", [b"\0\xff{", b"3", b"[1]", b'{"loss": 1}', b'{"step": "5"}'])
def test_a_damaged_line_of_metrics_costs_no_other(damage, data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=10", "--eval_interval=5") == 0
    before, path = rows(run)[:-1], run / "metrics.jsonl"  # the last one is of a run's end, and is said again
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + b"\n" + b"".join(others))
    assert cli.main(["train", f"--resume={run}", "--max_steps=11"]) == 0
    assert rows(run)[: len(before)] == before


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "missing"])
def test_a_damaged_file_of_a_checkpoint_is_named_and_the_other_offered(damage, data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    folder = checkpoint.folder_of(run, "last")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checksums.json", "config.json", "model.safetensors", "state.pt", "tokenizer.json"]
    for name in names:
        path = folder / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(content[:40] + bytes([content[40] ^ 4]) + content[41:])
        assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 2, name
        error = capsys.readouterr().err
        # A bit in checksums.json makes another file's sum wrong, or the JSON.
        assert str(path) in error or (name == "checksums.json" and str(folder) in error)
        assert "the checkpoint 'best' is intact: take it with --checkpoint best" in error
        path.write_bytes(content)
    assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 0


def test_disk_full_keeps_the_checkpoint_before(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    before = weights(run)

    def full(*arguments):
        raise RuntimeError("[enforce fail] unexpected pos 64 vs 0")  # what torch makes of a full disk

    monkeypatch.setattr(torch, "save", full)
    assert cli.main(["train", f"--resume={run}", "--max_steps=10"]) == 2
    monkeypatch.undo()
    assert "unexpected pos 64 vs 0; the one before it is intact" in capsys.readouterr().err
    for name, value in weights(run).items():
        assert torch.equal(value, before[name])


def test_a_disk_that_is_really_full(data, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        run = disk / "run"
        assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
        before, file = weights(run), disk / "filler"
        with file.open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(b"x" * 1024)
        assert cli.main(["train", f"--resume={run}", "--max_steps=10"]) == 2
        assert "No space left on device" in capsys.readouterr().err
        for name, value in weights(run).items():
            assert torch.equal(value, before[name])
        file.unlink()
        assert cli.main(["train", f"--resume={run}", "--max_steps=10"]) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def full_for_torch(monkeypatch):
    if not Path("/dev/full").is_char_device():
        pytest.skip("the system has no device that is always full")
    save = torch.save

    def into_a_full_device(value, file):
        with open("/dev/full", "wb") as device:
            save(value, device)

    monkeypatch.setattr(torch, "save", into_a_full_device)


def full_for_safetensors(monkeypatch):
    def fail(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)


@pytest.mark.parametrize("fill", [full_for_torch, full_for_safetensors])
def test_a_full_disk_is_what_the_message_says(fill, data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill(patch)
        assert train(data, run, "--max_steps=5") == 2
    # And it does not claim that there was a checkpoint before.
    assert capsys.readouterr().err == f"fastllm: cannot write {run}/checkpoints/best: No space left on device\n"
    assert cli.main(["train", f"--resume={run}"]) == 0


def test_a_disk_that_may_only_be_read(tmp_path, monkeypatch):
    """Not even what was never written can be taken away there; that is not what the message is about."""

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("open", "unlink"):
        monkeypatch.setattr(Path, name, fail)
    with pytest.raises(
        UserError, match=r"cannot write .*a\.txt: Read-only file system; nothing that was there is lost"
    ):
        files.write_text(tmp_path / "a.txt", "x")


def test_a_folder_that_cannot_be_written(data, tmp_path, capsys, monkeypatch):
    opened = Path.open

    def denied(path, mode="r", **options):  # not chmod: root writes everywhere
        if path.is_relative_to(tmp_path / "run") and mode != "r":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", denied)
    assert train(data, tmp_path / "run") == 2
    monkeypatch.undo()
    assert f"cannot write {tmp_path}/run/.lock: Permission denied" in capsys.readouterr().err
    assert train(data, tmp_path / "data" / "manifest.json" / "run") == 2  # a file where a folder should be
    assert "cannot make" in capsys.readouterr().err


def test_a_run_that_another_process_has(data, tmp_path, capsys):
    run = tmp_path / "run"
    other = Child(["train", f"--data={data}", f"--out={run}", *TINY, "--max_steps=100000000"])
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "last").exists():
        assert time.monotonic() < deadline and other.process.is_alive(), other.output()
        time.sleep(0.02)
    assert cli.main(["train", f"--resume={run}"]) == 2
    error = capsys.readouterr().err
    assert f"{run} is in use by process {other.pid}: wait for it, stop it, or name another folder" in error
    other.process.kill()
    other.process.join()
    files.lock(run).close()  # the system took the lock back


def test_the_lock_within_one_process(tmp_path):
    held = files.lock(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        files.lock(tmp_path)
    held.close()
    files.lock(tmp_path).close()


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=5", "--eval_interval=5") == 0
    before = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    assert cli.main(["train", f"--resume={run}", "--max_steps=6"]) == 2
    assert "it has no folder checkpoints" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_text() == before
