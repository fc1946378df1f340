"""Several processes train what one does: over gloo, on the CPU."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastllm import cli
from fastllm.data.batches import IGNORED, Batch
from fastllm.errors import UserError
from fastllm.files import verify_folder
from fastllm.optim import AdamW
from fastllm.train import TrainConfig, checkpoint, sharded
from fastllm.train.evaluation import mean_loss
from fastllm.train.parallel import Parallel
from tests.models.kinds import TRAINED
from tests.train.processes import run_together, together
from tests.train.tiny import assert_same_weights, command, rows, train, weights

# Dropout's masks follow the process; clipping must cut in on the global norm, which is about 1.
OPTIONS = ["--n_layer=2", "--dropout=0", "--max_steps=10", "--eval_interval=5", "--log_interval=1",
           "--grad_clip=0.3", "--ema_decay=0.5", "--learning_rate=1e-2"]  # fmt: skip


def assert_near(run, other):
    """Compare two runs' metrics to rounding."""
    ours, theirs = rows(run), rows(other)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        known = [key for key, value in b.items() if value is not None]
        assert {key: a[key] for key in known} == pytest.approx({key: b[key] for key in known}, rel=2e-4)


@pytest.mark.parametrize(("kind", "model"), [("ddp", "gpt"), ("fsdp", "gpt"), ("ddp", "llama"), ("fsdp", "qwen3")])
def test_two_processes_train_what_one_does(kind, model, data, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    assert train(data, alone, *OPTIONS, *TRAINED[model]) == 0
    options = [f"--parallel={kind}", "--micro_batch_size=1", "--sample_interval=5", "--keep_checkpoints=1"]
    options += TRAINED[model]
    children = run_together(command(data, two, *OPTIONS, *options), 2)
    assert_near(alone, two)
    assert children[1].output() == ""  # one of them talks
    assert f"in 2 processes ({kind})" in children[0].output()
    for name in ("last", "ema"):
        for key, value in weights(alone, name).items():
            torch.testing.assert_close(weights(two, name)[key], value, rtol=1e-3, atol=2e-4)
    assert cli.main(["eval", str(two), "--checkpoint=last"]) == 0  # a plain checkpoint, whoever wrote it
    assert len((two / "samples" / "10.txt").read_text()) > 200
    for folder in (*checkpoint.kept(two), checkpoint.folder_of(two, "best")):
        verify_folder(folder)
    if kind == "fsdp":
        every_damaged_file_is_named(checkpoint.folder_of(two, "last"))


def every_damaged_file_is_named(folder):
    parts = {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert parts < {path.name for path in folder.iterdir()}
    for name in parts:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{re.escape(str(folder / name))} is damaged"):
            checkpoint.find(folder.parent.parent, folder.name)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_resume_in_as_many_and_other_numbers_of_processes(kind, data, tmp_path):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    options = [*OPTIONS, f"--parallel={kind}", "--dropout=0.1", "--max_steps=30", "--eval_interval=10"]
    run_together(command(data, straight, *options), 2)
    children = together(command(data, halfway, *options), 2)
    wait_for_step(13, halfway, children)
    if kind == "ddp":
        os.kill(children[1].pid, signal.SIGINT)  # one gets it, all stop at one step
        assert [child.wait() for child in children] == [130, 130], [child.output() for child in children]
    else:
        for child in children:
            child.process.kill()
            child.process.join()
    run_together(["train", f"--resume={halfway}"], 2)
    assert_same_weights(straight, halfway)  # bit for bit
    assert_same_weights(straight, halfway, "ema")
    assert rows(straight) == rows(halfway)
    if kind == "ddp":
        run_together(["train", f"--resume={halfway}", "--max_steps=33", "--parallel=fsdp"], 2)
    else:
        assert cli.main(["train", f"--resume={halfway}", "--max_steps=33"]) == 0  # alone
    assert [row["step"] for row in rows(halfway) if "loss" in row] == list(range(1, 34))


def test_processes_go_back_to_the_best_and_change_how_they_share(data, tmp_path):
    run = tmp_path / "run"
    options = ["--learning_rate=0", "--min_learning_rate=0", "--max_steps=10", "--eval_interval=5", "--dropout=0"]
    run_together(command(data, run, *options, "--parallel=fsdp", "--ema_decay=0.5"), 2)
    before = rows(run)
    run_together(["train", f"--resume={run}", "--checkpoint=best"], 2)  # step 0's: nothing is learnt
    assert rows(run) == before
    run_together(["train", f"--resume={run}", "--parallel=ddp", "--max_steps=12"], 2)
    assert TrainConfig.load(run / "config.yaml").parallel == "ddp"
    assert checkpoint.load_state(run, "last")["step"] == 12


def wait_for_step(step, run, children):
    deadline = time.monotonic() + 60
    while not any(row["step"] >= step for row in rows(run)):
        assert time.monotonic() < deadline, children[0].output()
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun_and_ctrl_c(processes, data, tmp_path):
    run = tmp_path / "run"
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    process = subprocess.Popen(
        [*line, "-m", "fastllm", *command(data, run, "--max_steps=1000000", "--parallel=fsdp")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not any("loss" in row for row in rows(run)):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: torchrun passes it on a second time
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert f"continue with: fastllm train --resume {run}" in output
    assert process.returncode != 0
    step = rows(run)[-1]["step"]
    assert cli.main(["train", f"--resume={run}", f"--max_steps={step + 1}"]) == 0
    assert rows(run)[-1]["step"] == step + 1


def test_a_batch_that_cannot_be_shared(data, tmp_path):
    children = run_together(command(data, tmp_path / "run", "--batch_size=5"), 2, status=2)
    assert "'batch_size' must be a multiple of the 2 processes, got 5" in children[0].output()


def test_a_batch_without_targets_counts_for_nothing_in_an_evaluation():
    """A process that has no batch left gets one of these: FSDP's processes must all come equally often."""

    class Loss(torch.nn.Module):
        def forward(self, tokens, targets):
            return targets[targets != IGNORED].float().mean()

    tokens = torch.zeros(1, 2, dtype=torch.int64)
    batches = [Batch(tokens, torch.tensor([targets]), None) for targets in ([3, 3], [6, IGNORED], [IGNORED, IGNORED])]
    loss = mean_loss(Loss(), batches, Parallel(), torch.device("cpu"), torch.autocast("cpu", enabled=False))
    assert loss == 4.0


def test_adamw_on_the_parts_of_a_mesh_of_one():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]
        parts = [
            torch.nn.Parameter(distribute_tensor(plain[0].detach(), mesh, [Shard(0)])),
            torch.nn.Parameter(plain[1].detach().clone()),
        ]
        optimizers = [AdamW(p, lr=0.1, max_grad_norm=0.5) for p in (plain, parts)]
        for _ in range(3):
            gradients = [torch.randn(4, 3), torch.randn(3)]
            plain[0].grad, plain[1].grad = gradients
            parts[0].grad, parts[1].grad = distribute_tensor(gradients[0], mesh, [Shard(0)]), gradients[1].clone()
            for optimizer in optimizers:
                optimizer.step()
        assert optimizers[0].last_grad_norm == pytest.approx(optimizers[1].last_grad_norm)
        torch.testing.assert_close(parts[0].full_tensor(), plain[0])
        torch.testing.assert_close(parts[1], plain[1])
        assert isinstance(optimizers[1].state[parts[0]]["exp_avg"], type(parts[0].data))
    finally:
        torch.distributed.destroy_process_group()


class Malicious:
    def __reduce__(self):
        return os.system, ("echo pwned",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    sharded.save({"a": torch.ones(3)}, tmp_path)
    into = {"a": torch.zeros(3)}
    sharded.load(into, tmp_path)
    assert into["a"].tolist() == [1, 1, 1]
    (tmp_path / sharded.PARTS).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"does not describe tensors: it names (posix|nt).system"):
        sharded.load(into, tmp_path)


def test_bytes_that_torch_would_unpickle_are_refused(tmp_path):
    sharded.save({"a": json.dumps({})}, tmp_path)
    with pytest.raises(UserError, match=r"it names .*BytesStorageMetadata"):
        sharded.load({"a": ""}, tmp_path)
