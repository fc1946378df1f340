"""fastllm eval: a run's loss over a whole split."""

import json
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.files import new_folder, replace_folder


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="A run's loss in nats per token, perplexity and bits per byte over a whole split.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--split", default="val", help="val or train")
    parser.add_argument(
        "--data", type=Path | None, default=None, help="a data folder other than the run's, of the same vocabulary"
    )
    parser.add_argument("--checkpoint", default="best", help="best, last, ema or one that --keep_checkpoints kept")
    parser.add_argument(
        "--average", type=int, default=0, help="instead of one: the mean of so many that were kept last"
    )
    parser.add_argument("--out", type=Path | None, default=None, help="write the averaged model into this folder")
    parser.add_argument("--batch_size", type=int, default=12, help="sequences at once; changes the speed alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for other programs")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; the default is torch's choice")
    commands.add_subcommand("eval", parser, help="a run's loss over a whole split")


def run(arguments: Namespace) -> int:
    """Print the loss."""
    for name, least in (("average", 0), ("batch_size", 1), ("threads", 1)):
        value = arguments[name]
        if value is not None and value < least:
            raise UserError(f"eval: '{name}' must be at least {least}, got {value}")
    if arguments.split not in ("train", "val"):
        raise UserError(f"eval: 'split' must be train or val, got '{arguments.split}'")
    if "checkpoint" in arguments.typed and arguments.average:
        raise UserError(
            "eval: --average takes the checkpoints that were kept last: leave out 'checkpoint', or --average"
        )
    if arguments.out is not None and not arguments.average:
        raise UserError("eval: 'out' is where --average writes its model; give --average too")
    if arguments.out is not None:
        new_folder("eval", arguments.out)

    import torch

    from fastllm.data import TokenData, windows
    from fastllm.train import evaluation
    from fastllm.train.config import TrainConfig
    from fastllm.train.parallel import LossModule, Parallel

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer, which = _model(arguments)
    config = TrainConfig.load(arguments.run / "config.yaml")
    folder = arguments.data or config.data or arguments.run
    try:
        data = TokenData(folder)
    except UserError as error:
        raise UserError(f"eval: {error}; if the data of {arguments.run} is elsewhere now, name it: --data") from error
    data.verify()
    if data.tokenizer.to_json() != tokenizer.to_json():
        raise UserError(f"eval: the vocabulary of {folder} is not the one that {arguments.run} was trained with")
    parallel, device = Parallel(), torch.device("cpu")
    length = model.config.context_length
    split = data.split(arguments.split, length)
    batches = windows(split, length, arguments.batch_size, document_mask=config.document_mask)
    loss = evaluation.mean_loss(LossModule(model), batches, parallel, device, torch.autocast("cpu", enabled=False))
    perplexity, bits = evaluation.perplexity_and_bits(loss, split, config.document_mask)
    if arguments.json:
        told = {"run": str(arguments.run), "checkpoint": which, "data": str(folder), "split": arguments.split}
        print(json.dumps({**told, "loss": loss, "perplexity": perplexity, "bits_per_byte": bits}))
        return 0
    print(
        f"{which} on {arguments.split} of {folder}: loss {loss:.4f} nats per token, perplexity {perplexity:.3f}, "
        f"bits per byte {'n/a, as document_mask leaves tokens out' if bits is None else f'{bits:.4f}'}"
    )
    return 0


def _model(arguments: Namespace):
    """Return the model, its tokenizer and what to call it."""
    from fastllm.train import checkpoint
    from fastllm.train.average import average_weights

    if not arguments.average:
        return *checkpoint.load_model(arguments.run, arguments.checkpoint), arguments.checkpoint
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
