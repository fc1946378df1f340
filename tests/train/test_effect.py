"""Options that do something, those that would not, and runs that no machine can hold."""

import json
import math

import pytest
import torch

from fastllm import cli, memory
from fastllm.models import GPT
from fastllm.train import TrainConfig, checkpoint, plot
from fastllm.train.schedule import learning_rate
from tests.train.tiny import rows, train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint=best"], "'checkpoint' chooses where --resume continues: add --resume RUN, or leave it out"),
        (["--decay_share=0.3"], "'decay_share' belongs to --schedule wsd: add it, or leave it out"),
        (
            ["--schedule=constant", "--min_learning_rate=0"],
            "'min_learning_rate' belongs to --schedule cosine and wsd: choose one of them",
        ),
        (["--parallel=ddp"], "'parallel' says how several processes share the work, and there is only one"),
        (
            ["--micro_batch_size=9"],
            "'micro_batch_size' must be at most batch_size (4): make it smaller, or leave it out",
        ),
    ],
)
def test_options_without_effect_are_refused(options, message, data, tmp_path, capsys):
    assert train(data, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_with_every_setting_is_not_refused(data, tmp_path):
    """Such as a run's own config.yaml, which `estimate` takes too."""
    assert train(data, tmp_path / "run", "--max_steps=1") == 0
    file = f"--config={tmp_path / 'run' / 'config.yaml'}"
    assert cli.main(["train", file, f"--out={tmp_path / 'again'}"]) == 0
    assert rows(tmp_path / "again") == rows(tmp_path / "run")
    assert cli.main(["estimate", file]) == 0


def test_other_commands_refuse_what_has_no_effect(data, tmp_path, capsys):
    assert cli.main(["estimate", "--parallel=fsdp"]) == 2
    assert "estimate: 'parallel' says how several devices share the work: add --gpus N" in capsys.readouterr().err
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=2", "--eval_interval=1", "--keep_checkpoints=2") == 0
    assert cli.main(["eval", str(run), "--average=2", "--checkpoint=last"]) == 2
    assert "leave out 'checkpoint', or --average" in capsys.readouterr().err
    assert cli.main(["estimate", f"--init={run}", "--n_layer=3"]) == 2
    assert "'init' sets the model's n_layer (1); leave it out" in capsys.readouterr().err


def test_a_warm_up_longer_than_the_run_is_told(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--max_steps=3") == 0
    told = "note: warmup_steps (5) must be less than max_steps (3) for the full rate: the learning rate reaches only "
    assert f"{told}0.0005 of 0.001" in capsys.readouterr().out
    assert train(data, tmp_path / "longer", "--max_steps=6") == 0
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("peak", [1e-3, 3e-5, 2e-3])
def test_the_lowest_rate_follows_the_highest(peak):
    for schedule in ("cosine", "wsd"):
        config = TrainConfig(learning_rate=peak, schedule=schedule)
        config.check()
        assert learning_rate(config, config.max_steps) == peak / 10
    assert TrainConfig().learning_rate / 10 == 1e-4  # as it was when it was a number
    assert learning_rate(TrainConfig(learning_rate=peak, min_learning_rate=0.0), 2000) == 0


def test_init_with_other_dropout_and_a_shorter_context(data, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(data, run, "--max_steps=3") == 0
    options = ["--max_steps=2", "--batch_size=4", "--eval_batches=1"]
    words = ["train", f"--init={run}", f"--data={data}", f"--out={out}", *options]
    assert cli.main([*words, "--dropout=0.3", "--context_length=5", "--learning_rate=0"]) == 0
    model, trained = (checkpoint.load_model(folder, "best")[0] for folder in (out, run))
    assert (model.config.dropout, model.config.context_length) == (0.3, 5)
    assert model.blocks[0].norm_2.p == 0.3
    tokens = torch.arange(5)[None]
    assert torch.equal(model.eval()(tokens), trained.eval()(tokens))
    assert cli.main(["train", f"--resume={out}", "--max_steps=3"]) == 0
    again = [word.replace(str(out), str(tmp_path / "longer")) for word in words]
    assert cli.main([*again, "--context_length=9"]) == 2
    assert "sets the model's context_length (8), which can be made shorter but not longer" in capsys.readouterr().err


def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastllm.train.device.total_memory", lambda: 10**9)
    monkeypatch.setattr(GPT, "__init__", lambda self, config: pytest.fail("the model was made"))
    assert train(data, tmp_path / "run", "--n_embd=100000") == 2
    told = capsys.readouterr().err
    assert "this run needs about 1,9" in told
    assert "and there are 1 GB of memory here: take a smaller n_embd or n_layer" in told
    assert train(data, tmp_path / "run", "--batch_size=1000000") == 2
    assert "which gives the same step, or --activation_checkpointing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_advice_fits(capsys, monkeypatch):
    monkeypatch.setattr("fastllm.cli.estimate.total_memory", lambda: 10**9)
    monkeypatch.setenv("COLUMNS", "1000")
    assert cli.main(["estimate", "--batch_size=100000"]) == 0
    told = capsys.readouterr().out
    assert "218 GB of 1 GB: DOES NOT FIT; take --micro_batch_size" in told
    size = told.split("--micro_batch_size ")[1].split(",")[0]
    assert cli.main(["estimate", "--batch_size=100000", f"--micro_batch_size={size}"]) == 0
    assert "DOES NOT FIT" not in capsys.readouterr().out
    assert cli.main(["estimate", "--batch_size=100000", f"--micro_batch_size={int(size) + 1}"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("group", "limit"),
    [
        ("0::/", "sys/fs/cgroup/memory.max"),
        ("0::/a/b", "sys/fs/cgroup/a/memory.max"),
        ("5:cpu:/\n4:memory:/docker/x\n0::/", "sys/fs/cgroup/memory/memory.limit_in_bytes"),  # a container's own
    ],
)
def test_a_containers_limit_counts(group, limit, tmp_path):
    machine = memory.total_memory(tmp_path)
    assert machine > 10**8
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    file = tmp_path / limit
    file.parent.mkdir(parents=True)
    for text, expected in (("1000000\n", 1000000), ("max\n", machine), ("9223372036854771712\n", machine)):
        file.write_text(text)
        assert memory.total_memory(tmp_path) == expected


def run_named(folder, name):
    run = folder / name
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 0, "train_loss": 3.5, "val_loss": 3.5}\n')
    return run


@pytest.mark.parametrize("name", ["a $b$ c", "$", "_run", "a\nb", "\udcff", "5%", r"\alpha$_"])
def test_a_run_of_any_name_is_drawn_and_in_the_legend(name, tmp_path, monkeypatch):
    run, legends, finish = run_named(tmp_path, name), [], plot._finish
    monkeypatch.chdir(tmp_path)

    def watched(figure, axes, path):
        legends.append([text.get_text() for text in axes.get_legend().get_texts()])
        return finish(figure, axes, path)

    monkeypatch.setattr(plot, "_finish", watched)
    plot.plot_loss(run)
    out = plot.plot_runs(iter([run.relative_to(tmp_path), run_named(tmp_path, "other")]), tmp_path / "x.svg")
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert [text.split(": best")[0] for text in legends[1]] == [shown, str(tmp_path / "other")]
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(("end", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_pictures_are_of_the_format_that_they_are_named(end, begins, tmp_path, capsys):
    out = tmp_path / f"loss.{end}"
    assert cli.main(["plot", str(run_named(tmp_path, "_run")), f"--out={out}"]) == 0
    assert out.read_bytes().startswith(begins)


def test_a_picture_of_no_format(tmp_path, capsys):
    for name in ("loss.txt", "loss"):
        assert cli.main(["plot", str(run_named(tmp_path, f"run of {name}")), f"--out={tmp_path / name}"]) == 2
        assert "plot: 'out' must end in one of .png, .svg, .pdf, .jpg, .webp, got" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_help_has_settings_in_their_order_with_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    places = [
        text.index(f"\n  --{name} ")
        for name in ("data", "model", "document_mask", "seed", "dropout", "bias", "activation", "n_kv_head")
    ]
    assert places == sorted(places)
    assert "linear and norm layers have biases (default: false)" in text


def test_losses_as_json(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--max_steps=2") == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    final = rows(run)[-1]
    assert told["loss"] == pytest.approx(final["final_val_loss"])
    assert told["bits_per_byte"] == pytest.approx(final["final_val_bits_per_byte"])
    assert told["perplexity"] == pytest.approx(math.exp(told["loss"]))
    assert (told["split"], told["checkpoint"], told["run"]) == ("val", "best", str(run))
