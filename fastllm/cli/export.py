"""fastllm export: a model for other programs."""

from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.options import check_checkpoint
from fastllm.cli.parser import Parser
from fastllm.errors import UserError

FORMATS = ("huggingface", "fastllm")


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="Write a model as a folder that Hugging Face's transformers loads (AutoModelForCausalLM), or as "
        "one of fastllm's own. nanoGPT's checkpoints are read too, so this is also how one is taken over."
    )
    parser.add_argument("source", type=Path, help="a run's folder, a model's folder, a .gguf file or nanoGPT's ckpt.pt")
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist or be empty")
    parser.add_argument("--format", default="huggingface", help="huggingface, for transformers, or fastllm")
    parser.add_argument(
        "--checkpoint", default="best", help="a run's checkpoint: best, last, ema or one that --keep_checkpoints kept"
    )
    parser.add_argument("--tokenizer", type=Path, help="take the tokenizer of this data folder, run or model instead")
    commands.add_subcommand("export", parser, help="write a model for transformers, or take over one of nanoGPT's")


def run(arguments: Namespace) -> int:
    """Write the folder."""
    from fastllm.files import new_folder, replace_folder
    from fastllm.train import checkpoint

    if arguments.format not in FORMATS:
        raise UserError(f"export: 'format' must be {' or '.join(FORMATS)}, got '{arguments.format}'")
    check_checkpoint("export", arguments, arguments.source)
    out = new_folder("export", arguments.out)
    model, tokenizer = checkpoint.load_source(arguments.source, arguments.checkpoint, arguments.tokenizer)

    def fill(folder: Path) -> None:
        if arguments.format == "huggingface":
            model.save_huggingface(folder, tokenizer)
            return
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save(folder)

    replace_folder(out, fill)
    kept = "no tokenizer: name its folder with --tokenizer" if tokenizer is None else f"tokenizer {tokenizer.kind}"
    if tokenizer is not None and arguments.format == "huggingface" and tokenizer.huggingface() is None:
        kept += ", which AutoTokenizer reads from tokenizer.model where sentencepiece and protobuf are installed"
    print(f"{out}: {model.num_parameters():,} parameters for {arguments.format}; {kept}")
    return 0
