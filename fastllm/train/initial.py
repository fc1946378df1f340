"""The model that a run starts from: new, or with weights that were trained before."""

from collections.abc import Collection

import torch

from fastllm.errors import UserError, UserValueError
from fastllm.models import Model, ModelConfig, model_class
from fastllm.tokenizers import Tokenizer
from fastllm.train import checkpoint
from fastllm.train.config import TrainConfig, model_settings


def new_model(config: TrainConfig, tokenizer: Tokenizer) -> Model:
    """Return the model that the settings describe, with random weights.

    Raises:
        UserError: config.vocab_size is less than the tokenizer has.
    """
    settings = settings_for(config, tokenizer)
    model = model_class(settings)(settings)
    model.check_tokenizer(tokenizer, f"train: 'vocab_size' is too small for {config.data}")
    return model


def settings_for(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the settings of a new model: those of the run, with the tokenizer's vocabularies."""
    joint = getattr(tokenizer, "source", None) is getattr(tokenizer, "target", None)  # not a pair, or of one vocabulary
    return config.model_for(tokenizer.vocab_size, None if joint else tokenizer.source_vocab_size)  # type: ignore


def trained_model(config: TrainConfig, tokenizer: Tokenizer, given: Collection[str]) -> Model:
    """Return the model of config.init; the settings take on its sizes.

    Args:
        config: the run's settings.
        tokenizer: of the run's data.
        given: names of settings that were asked for: they must be the model's, or such as its weights still fit.

    Raises:
        UserError: there is no model, or it does not fit the data or what was asked for.
    """
    assert config.init is not None
    model, own = checkpoint.load_source(config.init)
    model.check_tokenizer(tokenizer, f"train: the vocabularies of {config.init} and {config.data} differ")
    if own is not None and own.to_json() != tokenizer.to_json():
        raise UserError(
            f"train: the tokenizers of {config.init} and {config.data} differ: prepare the data with the model's, "
            f"with --tokenizer_from {config.init}"
        )
    taken = adopt(config, model.config, given)
    model = model if taken == model.config else model.changed(taken)
    torch.manual_seed(config.seed)  # what loading drew is not the run's
    return model


def adopt(config: TrainConfig, trained: ModelConfig, given: Collection[str]) -> ModelConfig:
    """Put a trained model's settings into the run's; return those that the run's model then has.

    Raises:
        UserError: a setting that was given is not the model's, and is none that may be changed.
    """
    if "model" in given and config.model.kind != trained.kind:
        raise UserValueError(f"train: 'init' sets the model ({trained.kind}); leave it out")
    if others := [name for name in model_settings(config.model.kind) if name in given and not hasattr(trained, name)]:
        raise UserValueError(f"train: '{others[0]}' is not a setting of 'init', a {trained.kind} model; leave it out")
    asked = {**vars(config.model), "vocab_size": config.vocab_size}
    names = [name for name in ("vocab_size", *model_settings(trained.kind)) if name in given]
    changes = {name: asked[name] for name in names if asked[name] != getattr(trained, name)}
    for name, value in changes.items():
        if not trained.may_become(name, value):
            longer = ", which can be made shorter but not longer" if name == "context_length" else ""
            raise UserValueError(
                f"train: 'init' sets the model's {name} ({getattr(trained, name)}){longer}; leave it out"
            )
    try:
        config.model = trained.adapted(**changes)
    except ValueError as error:  # of a class that the user has not named
        raise UserValueError(f"train: {str(error).partition(': ')[2]}") from error
    config.vocab_size = trained.vocab_size
    return config.model
