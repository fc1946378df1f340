"""The model that a run starts from: new, or with weights that were trained before."""

from collections.abc import Collection

import torch

from fastllm.errors import UserError, UserValueError
from fastllm.models import GPT, GPTConfig
from fastllm.tokenizers import Tokenizer
from fastllm.train import checkpoint
from fastllm.train.config import TrainConfig

_SIZES = ("vocab_size", "context_length", "n_layer", "n_head", "n_embd", "dropout", "bias", "activation")


def new_model(config: TrainConfig, tokenizer: Tokenizer) -> GPT:
    """Return the model that the settings describe, with random weights.

    Raises:
        UserError: config.vocab_size is less than the tokenizer has.
    """
    sizes = {name: getattr(config, name) for name in _SIZES}
    model = GPT(GPTConfig(**sizes | {"vocab_size": config.vocab_size or tokenizer.vocab_size}))
    model.check_tokenizer(tokenizer, f"train: 'vocab_size' is too small for {config.data}")
    return model


def trained_model(config: TrainConfig, tokenizer: Tokenizer, given: Collection[str]) -> GPT:
    """Return the model of config.init; the settings take on its sizes.

    Args:
        config: the run's settings.
        tokenizer: of the run's data.
        given: names of settings that were asked for, and must be the model's.

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
    for name in _SIZES:
        size = getattr(model.config, name)
        if name in given and getattr(config, name) != size:
            raise UserValueError(f"train: 'init' sets the model's {name} ({size}); leave it out")
        setattr(config, name, size)
    torch.manual_seed(config.seed)  # what loading drew is not the run's
    return model
