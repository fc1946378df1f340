"""What a run writes and reads: once where once is enough, as of the batch that was used, and finite."""

import math
import os
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from fastllm import cli, files
from fastllm.data import Batches
from fastllm.errors import UserError
from fastllm.models import GPT
from fastllm.train import TrainConfig, checkpoint, state
from fastllm.train.evaluation import Evaluator
from fastllm.train.parallel import Parallel
from fastllm.train.trainer import Trainer
from tests.train.processes import run_together
from tests.train.tiny import assert_same_weights, command, rows, train, train_until

STANDING = ["--learning_rate=0", "--min_learning_rate=0", "--max_steps=10", "--eval_interval=5"]  # nothing gets better


def test_resume_is_exact_with_batches_made_ahead(data, tmp_path, monkeypatch):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    options = ["--max_steps=30", "--eval_interval=10", "--document_mask"]
    assert train(data, straight, *options) == 0
    made, batch = [], Batches.batch

    def watched(self, position, rows=None):
        if threading.current_thread().name == "fastllm-prefetch":
            made.append(position)
        return batch(self, position, rows)

    monkeypatch.setattr(Batches, "batch", watched)
    monkeypatch.setattr("fastllm.train.device.wants_prefetch", lambda device: True)
    config = TrainConfig.load(straight / "config.yaml")
    config.out = halfway
    for stop, resume in ((7, None), (20, "last"), (25, "best")):
        train_until(config, stop, resume)
        assert checkpoint.load_state(halfway, "last")["batches"] == stop  # the batch used ...
        assert max(made) >= stop  # ... not the one made, which is further on
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    assert not any(thread.name == "fastllm-prefetch" for thread in threading.enumerate())
    assert sorted(set(made))[:30] == list(range(30))
    assert_same_weights(straight, halfway)
    assert rows(straight)[-1] == rows(halfway)[-1]


def test_a_batch_that_cannot_be_made_ahead_stops_the_run(data, tmp_path, monkeypatch):
    batch = Batches.batch

    def broken(self, position, rows=None):
        if threading.current_thread().name == "fastllm-prefetch" and position == 3:
            raise UserError("the disk is gone")
        return batch(self, position, rows)

    monkeypatch.setattr(Batches, "batch", broken)
    monkeypatch.setattr("fastllm.train.device.wants_prefetch", lambda device: True)
    assert train(data, tmp_path / "run", "--max_steps=9") == 2
    assert checkpoint.load_state(tmp_path / "run", "last")["step"] == 0
    assert not any(thread.name == "fastllm-prefetch" for thread in threading.enumerate())


def same_file(run, name, other):
    """Return whether two checkpoints share their files on the disk."""
    one, two = (checkpoint.folder_of(run, checkpoint_name) for checkpoint_name in (name, other))
    shared = {os.path.samefile(file, two / file.name) for file in one.iterdir()}
    assert len(shared) == 1 and {f.name for f in one.iterdir()} == {f.name for f in two.iterdir()}
    return shared.pop()


def test_equal_checkpoints_are_made_once(data, tmp_path, monkeypatch):
    run, saved, save = tmp_path / "run", [], GPT.save_pretrained
    monkeypatch.setattr(GPT, "save_pretrained", lambda self, folder: saved.append(folder) or save(self, folder))
    assert train(data, run, "--keep_checkpoints=9", *STANDING) == 0
    assert len(saved) == 3  # one an evaluation
    assert same_file(run, "best", "step-00000000")
    assert not same_file(run, "step-00000005", "step-00000010")
    assert same_file(run, "last", "step-00000010")
    better = tmp_path / "better"
    assert train(data, better, "--max_steps=5", "--eval_interval=5") == 0
    assert len(saved) == 5
    assert not same_file(better, "best", "last")  # damage to one leaves the other
    for name in ("best", "last"):
        assert checkpoint.load_state(better, name)["step"] == 5


def test_copies_where_the_disk_has_no_links(data, tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr(os, "link", no_link)
    assert train(data, tmp_path / "run", "--keep_checkpoints=2", *STANDING) == 0
    assert not same_file(tmp_path / "run", "last", "step-00000010")
    for folder in [*checkpoint.kept(tmp_path / "run"), checkpoint.folder_of(tmp_path / "run", "last")]:
        files.verify_folder(folder)


def test_a_copy_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    for name in ("old", "new"):
        files.replace_folder(tmp_path / name, lambda folder, text=name: files.write_text(folder / "text", text))

    def full(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("shutil.copy", full)
    with pytest.raises(UserError, match=r"cannot write .*old: No space left on device; the one before it is intact"):
        files.copy_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "text").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_a_resumed_run_reads_every_file_once_to_check_it(data, tmp_path, monkeypatch):
    run, read, digest = tmp_path / "run", Counter(), files.sha256

    def watched(path):
        read[path] += 1
        return digest(path)

    assert train(data, run, "--max_steps=4") == 0
    monkeypatch.setattr(files, "sha256", watched)
    monkeypatch.setattr("fastllm.data.dataset.sha256", watched)
    config = TrainConfig.load(run / "config.yaml")
    Trainer(config, "last").close()
    checked = {path.name for path in read}
    assert checked >= {"model.safetensors", "state.pt", "train-00000.bin", "val-00000.bin"}
    assert set(read.values()) == {1}
    read.clear()
    monkeypatch.setattr(Parallel, "is_first_here", property(lambda self: False))  # another one of this machine does it
    Trainer(config, "last").close()
    assert not read


def test_damage_that_one_process_finds_stops_all(data, tmp_path):
    shard = data / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    for child in run_together(command(data, tmp_path / "run", "--max_steps=2"), 2, status=2):
        assert f"{shard} is damaged" in child.output()


def test_a_run_in_use_stops_all_processes(data, tmp_path):
    (tmp_path / "run").mkdir()
    held = files.lock(tmp_path / "run")
    for child in run_together(command(data, tmp_path / "run", "--max_steps=2"), 2, status=2):
        assert f"is in use by process {os.getpid()}" in child.output()
    held.close()


def test_another_number_of_processes_draws_what_was_not_drawn_yet():
    def drawn(rank, step, seed=1337):
        one = [{"cpu": torch.get_rng_state()}]
        processes = SimpleNamespace(rank=rank, world_size=2)
        state.set_random_state(one, seed, step, torch.device("cpu"), processes)
        return torch.randint(2**60, ()).item()

    assert drawn(0, 5) == drawn(0, 5)
    different = {drawn(rank, step, seed) for rank in (0, 1) for step in (0, 5, 6) for seed in (1337, 1338)}
    torch.manual_seed(1337)
    assert len(different | {torch.randint(2**60, ()).item()}) == 13  # nor what the run's beginning drew


def test_a_run_does_not_end_with_a_loss_that_is_not_finite(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Evaluator, "summary", lambda self: {"val_loss": math.nan, "val_bits_per_byte": None})
    assert train(data, tmp_path / "run", "--max_steps=3") == 2
    assert "val_loss became nan at step 3; the last checkpoint" in capsys.readouterr().err
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_resuming_a_run_that_is_there_already(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=6") == 0
    assert "already" not in capsys.readouterr().out
    for options in ([], ["--max_steps=6"]):
        assert cli.main(["train", f"--resume={run}", *options]) == 0
        assert (
            "the run is already at its last step, 6; to continue it, give a larger --max_steps"
            in capsys.readouterr().out
        )
    before = rows(run)
    assert cli.main(["train", f"--resume={run}", "--max_steps=5"]) == 2
    assert f"{run} is at step 6 already; to continue, 'max_steps' must be larger, got 5" in capsys.readouterr().err
    assert TrainConfig.load(run / "config.yaml").max_steps == 6
    assert rows(run) == before
    assert cli.main(["train", f"--resume={run}", "--max_steps=7"]) == 0
    assert "already" not in capsys.readouterr().out


def test_a_wrong_value_is_pythons_error_too(tmp_path):
    with pytest.raises(ValueError, match="'n_layer' must be at least 1, got 0"):
        TrainConfig.of({"n_layer": 0})
    with pytest.raises(UserError) as missing:
        checkpoint.load_source(tmp_path / "nowhere")
    assert not isinstance(missing.value, ValueError)
