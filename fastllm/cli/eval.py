"""fastllm eval: a model's loss over a whole split."""

import json
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.options import check_checkpoint
from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.files import is_run, new_folder, replace_folder
from fastllm.train.config import TrainConfig


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="A model's loss in nats per token and perplexity over a whole split; of a language model bits per "
        "byte, of a translation model BLEU and chrF."
    )
    parser.add_argument("run", type=Path, help="the run's folder; or a model, with --data")
    parser.add_argument("--split", default="val", help="val, train, or of sentence pairs test")
    parser.add_argument(
        "--num_beams",
        type=int,
        default=4,
        help="of a translation model: beams that translate for BLEU and chrF",
    )
    parser.add_argument(
        "--data", type=Path | None, default=None, help="a data folder other than the run's, of the same vocabulary"
    )
    parser.add_argument("--checkpoint", default="best", help="best, last, ema or one that --keep_checkpoints kept")
    parser.add_argument(
        "--average", type=int, default=0, help="evaluate the mean of this many checkpoints, those that were kept last"
    )
    parser.add_argument("--out", type=Path | None, default=None, help="write the averaged model into this folder")
    parser.add_argument("--batch_size", type=int, default=12, help="sequences at once; it changes only the speed")
    parser.add_argument(
        "--context_length", type=int | None, default=None, help="tokens seen at once; the default is the model's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for other programs")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; the default is torch's choice")
    commands.add_subcommand("eval", parser, help="a model's loss over a whole split")


def run(arguments: Namespace) -> int:
    """Print the loss."""
    for name, least in (("average", 0), ("batch_size", 1), ("threads", 1), ("context_length", 1), ("num_beams", 1)):
        value = arguments[name]
        if value is not None and value < least:
            raise UserError(f"eval: '{name}' must be at least {least}, got {value}")
    if arguments.split not in ("train", "val", "test"):
        raise UserError(f"eval: 'split' must be train, val or test, got '{arguments.split}'")
    if "checkpoint" in arguments.typed and arguments.average:
        raise UserError(
            "eval: --average takes the checkpoints that were kept last: leave out 'checkpoint', or --average"
        )
    check_checkpoint("eval", arguments, arguments.run)
    if not is_run(arguments.run) and (arguments.run.exists() and arguments.data is None):
        raise UserError(f"eval: 'data' must be given, because {arguments.run} is a model and not a run")
    if arguments.out is not None and not arguments.average:
        raise UserError("eval: 'out' is where --average writes its model; give --average too")
    if arguments.out is not None:
        new_folder("eval", arguments.out)

    import torch

    from fastllm.train import evaluation
    from fastllm.train.parallel import LossModule, Parallel
    from fastllm.train.task import task_of

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer, which = _model(arguments)
    config = _config(arguments.run)
    longest = model.config.context_length
    if (arguments.context_length or 0) > longest:
        raise UserError(f"eval: 'context_length' must be at most the model's {longest}, got {arguments.context_length}")
    config.model = replace(model.config, context_length=arguments.context_length or longest)
    config.batch_size, config.micro_batch_size = arguments.batch_size, None
    folder = arguments.data or config.data or arguments.run
    try:
        task = task_of(config, folder)
    except UserError as error:
        raise UserError(f"eval: {error}; if the data of {arguments.run} is elsewhere now, name it: --data") from error
    task.verify()
    if task.tokenizer.to_json() != tokenizer.to_json():
        raise UserError(f"eval: the vocabulary of {folder} is not the one that {arguments.run} was trained with")
    if arguments.split not in task.splits:
        raise UserError(f"eval: 'split' must be {' or '.join(task.splits)} of this data, got '{arguments.split}'")
    task.begin(config)
    batches = task.all(arguments.split)
    precision = torch.autocast("cpu", enabled=False)
    loss = evaluation.mean_loss(LossModule(model), batches, Parallel(), torch.device("cpu"), precision)
    measures = task.measures(arguments.split, loss)
    scores, signatures = task.scores(model, arguments.split, arguments.num_beams)
    if arguments.json:
        told = {"run": str(arguments.run), "checkpoint": which, "data": str(folder), "split": arguments.split}
        signed = {f"{name}_signature": signature for name, signature in signatures.items()}
        print(json.dumps({**told, "loss": loss, **measures, **scores, **signed}))
        return 0
    others = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in measures.items())
    print(f"{which} on {arguments.split} of {folder}: loss {loss:.4f} nats per token, {others}")
    for name, value in scores.items():
        print(f"{name} {value:.2f} ({signatures[name]})")
    return 0


def _shown(value: float | None) -> str:
    return "n/a, as document_mask leaves tokens out" if value is None else f"{value:.4f}"


def _config(source: Path) -> TrainConfig:
    """Return a run's settings; a model without a run has only its own."""
    return TrainConfig.load(source / "config.yaml") if is_run(source) else TrainConfig()


def _model(arguments: Namespace):
    """Return the model, its tokenizer and what to call it."""
    from fastllm.train import checkpoint
    from fastllm.train.average import average_weights

    if not arguments.average:
        model, tokenizer = checkpoint.load_source(arguments.run, arguments.checkpoint)
        if tokenizer is None:
            raise UserError(f"eval: {arguments.run} has no tokenizer")
        return model, tokenizer, arguments.checkpoint if is_run(arguments.run) else arguments.run.name
    folders = checkpoint.kept(arguments.run)[-arguments.average :]
    if len(folders) < arguments.average:
        raise UserError(
            f"eval: 'average' must be at most the {len(folders)} checkpoints that {arguments.run} kept, got "
            f"{arguments.average}; train with --keep_checkpoints {arguments.average}"
        )
    _, tokenizer = checkpoint.load_model(arguments.run, folders[-1].name)
    model = average_weights([checkpoint.find(arguments.run, folder.name) for folder in folders])
    if arguments.out is not None:

        def fill(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save(folder)

        replace_folder(arguments.out, fill)
    return model, tokenizer, f"mean of {folders[0].name} to {folders[-1].name}"
