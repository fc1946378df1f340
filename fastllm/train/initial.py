"""The model that a run starts from: new, or with weights that were trained before."""

from collections.abc import Collection
from dataclasses import replace

import torch

from fastllm.errors import UserError, UserValueError
from fastllm.models import GPT, GPTConfig
from fastllm.tokenizers import Tokenizer
from fastllm.train import checkpoint
from fastllm.train.config import TrainConfig

_SIZES = ("vocab_size", "context_length", "n_layer", "n_head", "n_embd", "dropout", "bias", "activation")


def model_config(config: TrainConfig, vocab_size: int) -> GPTConfig:
    """Return the architecture that the settings describe, with this many tokens where they name no number."""
    sizes = {name: getattr(config, name) for name in _SIZES}
    return GPTConfig(**sizes | {"vocab_size": config.vocab_size or vocab_size})


def new_model(config: TrainConfig, tokenizer: Tokenizer) -> GPT:
    """Return the model that the settings describe, with random weights.

    Raises:
        UserError: config.vocab_size is less than the tokenizer has.
    """
    model = GPT(model_config(config, tokenizer.vocab_size))
    model.check_tokenizer(tokenizer, f"train: 'vocab_size' is too small for {config.data}")
    return model


def trained_model(config: TrainConfig, tokenizer: Tokenizer, given: Collection[str]) -> GPT:
    """Return the model of config.init; the settings take on its sizes.

    Args:
        config: the run's settings.
        tokenizer: of the run's data.
        given: names of settings that were asked for, and must be the model's; but dropout may be any, and the context
            shorter.

    Raises:
        UserError: there is no model, or it does not fit the data or what was asked for.
    """
    assert config.init is not None
    model, own = checkpoint.load_source(config.init)
    model.check_tokenizer(tokenizer, f"train: the vocabularies of {config.init} and {config.data} differ")
    if own is not None and own.to_json() != tokenizer.to_json():
        raise UserError(
            f"train: the tokenizers of {config.init} and {config.data} differ: prepare the data with the model's, "
            f"by --tokenizer-from {config.init}"
        )
    taken = adopt(config, model.config, given)
    model = model if taken == model.config else _changed(model, taken)
    torch.manual_seed(config.seed)  # what loading drew is not the run's
    return model


def adopt(config: TrainConfig, trained: GPTConfig, given: Collection[str]) -> GPTConfig:
    """Let the settings take on a trained model's sizes; return those that the run's model then has.

    Raises:
        UserError: a size that was given is not the model's, and is none that may be changed.
    """
    changed = {}
    for name in _SIZES:
        size, asked = getattr(trained, name), getattr(config, name)
        if name not in given or asked == size:
            setattr(config, name, size)
        elif name == "dropout" or (name == "context_length" and asked < size):
            changed[name] = asked
        else:
            longer = ", which can be made shorter but not longer" if name == "context_length" else ""
            raise UserValueError(f"train: 'init' sets the model's {name} ({size}){longer}; leave it out")
    return replace(trained, **changed)


def _changed(model: GPT, config: GPTConfig) -> GPT:
    """Return a model with other dropout, or with the first positions only, and the same weights."""
    changed = GPT(config)
    weights = model.state_dict()
    for name, value in changed.state_dict().items():
        value.copy_(weights[name][: len(value)])
    return changed
