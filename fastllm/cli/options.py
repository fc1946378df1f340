"""Options that several commands have: a run's settings, and its checkpoint."""

import inspect
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from jsonargparse import ActionYesNo, Namespace

from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.files import is_run
from fastllm.train.config import TrainConfig


def add_train_config(parser: Parser, skip: Collection[str] = ()) -> None:
    """Add --config and an option for each setting; a switch may stand alone, as in --compile."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the settings below")
    settings = parser.add_argument_group("settings")
    for field in fields(TrainConfig):
        if field.name in skip:
            continue
        switch: dict = {"action": ActionYesNo(no_prefix="no_"), "nargs": "?"} if field.type is bool else {}
        kind: dict = {} if field.type is bool else {"type": field.type}
        settings.add_argument(f"--{field.name}", default=field.default, help=_description(field.name), **switch, **kind)


def config_of(arguments: Namespace, skip: Collection[str] = ()) -> TrainConfig:
    """Return the settings that were given, defaults elsewhere; skip as for add_train_config."""
    names = [field.name for field in fields(TrainConfig) if field.name not in skip]
    return TrainConfig(**{name: arguments[name] for name in names})


def check_checkpoint(command: str, arguments: Namespace, folder: Path) -> None:
    """Raise UserError if --checkpoint was given for a model's folder, which has but one."""
    if "checkpoint" in arguments.given and folder.exists() and not is_run(folder):
        raise UserError(f"{command}: 'checkpoint' is of a run, and {folder} is not a run; leave it out")


def _description(name: str) -> str:
    match = re.search(
        rf"^ {{4}}{name}: (.*?)(?=^ {{4}}\w+: |\Z)", inspect.getdoc(TrainConfig) or "", re.DOTALL | re.MULTILINE
    )
    return " ".join(match[1].split()).removesuffix(".") if match else ""
