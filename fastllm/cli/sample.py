"""fastllm sample: text from a run."""

from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.parser import Parser
from fastllm.errors import UserError


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(description="Generate text from a run; it streams as it comes.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--prompt", default="\n", help="the text to continue")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="how many tokens to add")
    parser.add_argument("--num_samples", type=int, default=1, help="how many texts")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--top_k", type=int | None, default=None, help="draw among the k likeliest tokens only")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same text")
    parser.add_argument("--checkpoint", default="best", help="best or last")
    commands.add_subcommand("sample", parser, help="generate text from a run")


def run(arguments: Namespace) -> int:
    """Print generated text as it comes."""
    from fastllm.generation import generate
    from fastllm.train import checkpoint

    if arguments.checkpoint not in ("last", "best"):
        raise UserError(f"sample: 'checkpoint' must be last or best, got '{arguments.checkpoint}'")
    model, tokenizer = checkpoint.load_model(arguments.run, arguments.checkpoint)
    if not arguments.prompt:
        raise UserError("sample: 'prompt' must not be empty; leave it out to start from a new line")
    ids = tokenizer.encode(arguments.prompt).tolist()
    for index in range(arguments.num_samples):
        if index:
            print("\n" + "-" * 40)
        print(arguments.prompt, end="", flush=True)
        options = {"temperature": arguments.temperature, "top_k": arguments.top_k, "seed": arguments.seed + index}
        for token in generate(model, ids, arguments.max_new_tokens, **options):
            print(tokenizer.decode([token]), end="", flush=True)
        print()
    return 0
