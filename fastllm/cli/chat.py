"""fastllm chat: a conversation with an instruct model."""

import sys
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.console import asked, load, set_threads, utf8
from fastllm.cli.options import SAMPLING, add_sampling, check_checkpoint
from fastllm.cli.parser import Parser
from fastllm.errors import UserError

_COMMANDS = "/reset forgets the conversation, /save FILE writes it as JSON, /quit ends; Ctrl-C ends an answer"


def add_to(commands) -> None:
    """Add the command's parser."""
    parser = Parser(
        description="Talk with an instruct model, such as a Hugging Face folder or a .gguf file of a Llama, Mistral, "
        "Qwen2 or Qwen3. It remembers what was said before. Commands begin with a slash: " + _COMMANDS + "."
    )
    parser.add_argument("model", type=Path, help="a folder or file with a model, its tokenizer and its chat template")
    parser.add_argument("--system", type=str | None, default=None, help="what the model is told before all messages")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="how many tokens an answer has at most")
    add_sampling(parser, temperature=0.5, top_p=0.9)
    parser.add_argument("--seed", type=int, default=1337, help="the same seed and messages give the same answers")
    parser.add_argument("--checkpoint", default="best", help="a run's checkpoint: best, last, ema or one that was kept")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where it can be used")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; the default is torch's choice")
    commands.add_subcommand("chat", parser, help="talk with an instruct model")


def run(arguments: Namespace) -> int:
    """Answer what is typed, until its end."""
    from fastllm.generation import Chat

    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"chat: 'threads' must be at least 1, got {arguments.threads}")
    check_checkpoint("chat", arguments, arguments.model)
    model, tokenizer = load("chat", arguments.model, arguments.checkpoint, arguments.device)
    set_threads(model, 1, arguments.threads)
    sampling = {name: arguments[name] for name in SAMPLING}
    system = None if arguments.system is None else utf8("chat", arguments.system)
    chat = Chat(
        model, tokenizer, system, max_new_tokens=arguments.max_new_tokens, seed=arguments.seed, **sampling
    )  # fmt: skip
    if sys.stdin.isatty():
        print(f"{arguments.model.name}, {model.num_parameters():,} parameters. {_COMMANDS}.")
    for line in asked():
        try:
            if line.startswith("/"):
                if _command(chat, line):
                    return 0
            else:
                _answer(chat, utf8("chat", line))
        except UserError as error:  # the next message may do
            print(f"fastllm: {error}", file=sys.stderr)
    return 0


def _answer(chat, line: str) -> None:
    before = chat.left_out
    pieces = chat.say(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:  # of the answer alone; what there is of it stays in the history
        pass
    print()
    if chat.left_out > before:
        print(
            "fastllm: the conversation is longer than the model's context: the model no longer sees the first "
            f"{chat.left_out} messages",
            file=sys.stderr,
        )


def _command(chat, line: str) -> bool:
    """Do what a line that begins with a slash says; return whether to end."""
    name, _, rest = line.partition(" ")
    if name == "/quit":
        return True
    if name == "/reset":
        chat.reset()
    elif name == "/save" and rest.strip():
        chat.save(rest.strip())
        print(f"saved in {rest.strip()}")
    else:
        raise UserError(f"chat: '{name}' is not a command{' without a file' * (name == '/save')}: {_COMMANDS}")
    return False
