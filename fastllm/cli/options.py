"""Options that several commands have: a run's settings, and its checkpoint."""

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, Namespace

from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.files import is_run
from fastllm.models.config import CONFIGS, DEFAULT
from fastllm.train.config import OWN, TrainConfig, model_settings, start


def add_train_config(parser: Parser, skip: Collection[str] = ()) -> None:
    """Add --config and an option for each setting, the models' too; a switch may stand alone, as in --compile."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the settings below")
    settings = parser.add_argument_group("settings")
    for field in fields(TrainConfig):
        if field.name == "model":
            settings.add_argument("--model", default=DEFAULT, help=f"the architecture: {', '.join(CONFIGS)}")
        elif field.name not in skip:
            _add_setting(settings, field, field.default, TrainConfig)
    for title, kinds, names in _groups_of_models():
        group = parser.add_argument_group(title)
        config = CONFIGS[kinds[0]]
        own = {field.name: field for field in fields(config)}
        for name in names:
            _add_setting(group, own[name], getattr(start(kinds[0]), name), config)


def _groups_of_models() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the models' settings, those of several architectures first: a title, the architectures, the names."""
    names = {name: [kind for kind in CONFIGS if name in model_settings(kind)]
             for kind in CONFIGS for name in model_settings(kind)}  # fmt: skip
    for kinds in sorted(names.values(), key=len, reverse=True):
        together = [name for name, of in names.items() if of == kinds]
        if together:
            yield f"settings of --model {' and '.join(kinds)}", kinds, together
            for name in together:
                del names[name]


def _add_setting(group: Any, field: Field, default: Any, config: type) -> None:
    switch: dict = {"action": ActionYesNo(no_prefix="no_"), "nargs": "?"} if field.type is bool else {}
    kind: dict = {} if field.type is bool else {"type": field.type}
    group.add_argument(f"--{field.name}", default=default, help=_description(config, field.name), **switch, **kind)


def given_settings(arguments: Namespace, skip: Collection[str] = ()) -> list[str]:
    """Return the names of the settings that were given, the models' too; skip as for add_train_config."""
    known = dict.fromkeys(["model", *OWN, *(name for kind in CONFIGS for name in model_settings(kind))])
    return [name for name in known if name in arguments.given and name not in skip]


def config_of(arguments: Namespace, skip: Collection[str] = ()) -> TrainConfig:
    """Return the settings that were given, defaults elsewhere; skip as for add_train_config.

    With --init the architecture is that of the model, unless --model names one.

    Raises:
        UserError: a value cannot be, or a setting is of another architecture than --model.
    """
    settings = {name: arguments[name] for name in given_settings(arguments, skip)}
    if settings.get("init") is not None and "model" not in settings:
        from fastllm.models.loading import kind_of

        settings["model"] = kind_of(settings["init"]) or DEFAULT
    return TrainConfig.of(settings)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def add_sampling(parser: Parser, temperature: float = 0.8, top_p: float | None = None) -> None:
    """Add an option for each of SAMPLING, with these defaults."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        help="below 1 favours likely tokens; 0 always takes the likeliest",
    )
    parser.add_argument("--top_k", type=int | None, default=None, help="draw only among the k likeliest tokens")
    parser.add_argument(
        "--top_p",
        type=float | None,
        default=top_p,
        help="draw among the likeliest tokens, as many as reach this probability together",
    )
    parser.add_argument(
        "--min_p",
        type=float | None,
        default=None,
        help="leave out tokens with less than this share of the likeliest token's probability",
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        help="above 1: tokens that are already in the text become less likely",
    )


def check_checkpoint(command: str, arguments: Namespace, folder: Path) -> None:
    """Raise UserError if --checkpoint was given for a model's folder, which has but one."""
    if "checkpoint" in arguments.given and folder.exists() and not is_run(folder):
        raise UserError(
            f"{command}: 'checkpoint' chooses a checkpoint of a run, and {folder} is not a run; leave it out"
        )


def _description(config: type, name: str) -> str:
    match = re.search(
        rf"^ {{4}}{name}: (.*?)(?=^ {{4}}\w+: |\n\n|\Z)", inspect.getdoc(config) or "", re.DOTALL | re.MULTILINE
    )
    return " ".join(match[1].split()).removesuffix(".") if match else ""
