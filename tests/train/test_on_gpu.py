"""Training and sampling on a GPU, from the command to the files: in every precision, and on from a checkpoint."""

import pytest
import torch

from fastllm import cli
from fastllm.data import Batch
from fastllm.models import GPT, GPTConfig
from fastllm.train import TrainConfig, checkpoint
from fastllm.train.parallel import LossModule, Parallel
from fastllm.train.stepper import Stepper
from tests.models.kinds import TRAINED
from tests.train.tiny import assert_same_weights, rows, train, train_until

PRECISIONS = ["float32", "bfloat16", "float16"]
RUNS = [*((precision, "gpt") for precision in PRECISIONS), ("float32", "llama"), ("bfloat16", "qwen3")]
OPTIONS = ["--max_steps=10", "--eval_interval=5", "--learning_rate=1e-2", "--log_interval=1"]
BATCH = Batch(torch.arange(48).view(6, 8) % 17, torch.arange(1, 49).view(6, 8) % 17, None)


@pytest.fixture(autouse=True)
def serving_gpu(gpu, monkeypatch):
    gpu.serve(monkeypatch)
    return gpu


def stepper(precision, **settings):
    torch.manual_seed(1)
    model = GPT(GPTConfig(17, 8, 2, 2, 16, bias=True)).to("cuda")
    config = TrainConfig(batch_size=6, precision=precision, **settings)
    return Stepper(config, model, LossModule(model), Parallel(), torch.device("cuda"))


@pytest.mark.parametrize(("precision", "model"), RUNS)
def test_a_run_learns_what_it_learns_on_the_cpu(precision, model, data, tmp_path):
    """No dropout: it draws from the device's own generator."""
    losses = {}
    for where in ("cpu", "cuda"):
        options = [
            *TRAINED[model],
            "--dropout=0",
            f"--device={where}",
            f"--precision={precision if where == 'cuda' else 'float32'}",
        ]
        assert train(data, tmp_path / where, *OPTIONS, *options) == 0
        losses[where] = [row["loss"] for row in rows(tmp_path / where) if "loss" in row]
    assert losses["cpu"][0] - losses["cpu"][-1] > 0.5
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4 if precision == "float32" else 1e-2)


@pytest.mark.parametrize(("precision", "model"), RUNS)
def test_resume_is_exact(precision, model, data, tmp_path):
    straight, halfway = tmp_path / "straight", tmp_path / "halfway"
    options = [*OPTIONS, *TRAINED[model], "--device=cuda", f"--precision={precision}", "--micro_batch_size=3"]
    assert train(data, straight, *options) == 0
    config = TrainConfig.load(straight / "config.yaml")
    config.out = halfway
    train_until(config, 4)
    assert cli.main(["train", f"--resume={halfway}"]) == 0
    assert_same_weights(straight, halfway)
    assert rows(straight) == rows(halfway)
    stored = [checkpoint.load_state(run, "last") for run in (straight, halfway)]
    assert stored[0]["scaler"] == stored[1]["scaler"]
    assert bool(stored[0]["scaler"]) == (precision == "float16")


def test_a_step_that_overflows_float16_is_left_out_and_the_scale_halved():
    ours = stepper("float16")
    before = {name: parameter.detach().cpu().clone() for name, parameter in ours.model.named_parameters()}
    ours.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    ours.step(BATCH, 1e-2)
    assert ours.scaler.get_scale() == 2.0**23
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(parameter.cpu(), before[name]), name
    losses = [ours.step(BATCH, 1e-2).item() for _ in range(20)]
    assert ours.scaler.get_scale() < 2.0**23
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_has_the_loss_and_norm_of_float32_in_micro_batches_too(precision):
    expected = stepper("float32")
    loss = expected.step(BATCH, 1e-2).item()
    rel = 1e-5 if precision == "float32" else 1e-2
    for size in (None, 4):
        ours = stepper(precision, micro_batch_size=size)
        assert ours.step(BATCH, 1e-2).item() == pytest.approx(loss, rel=rel)
        assert float(ours.grad_norm) == pytest.approx(float(expected.grad_norm), rel=rel)


def test_sampling_from_a_run(data, tmp_path, capsys):
    """In float32 the tokens are the CPU's: no two candidates are as near as rounding is far."""
    assert train(data, tmp_path / "run", *OPTIONS, "--device=cuda", "--sample_interval=10") == 0
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 1
    texts = []
    for where in ("cpu", "cuda"):
        capsys.readouterr()
        command = ["sample", str(tmp_path / "run"), f"--device={where}", "--prompt=the", "--max-new-tokens=30"]
        assert cli.main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
