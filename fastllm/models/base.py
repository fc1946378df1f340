"""What every model is to those who train, save, load and measure it. Knows no architecture and no file format."""

from collections.abc import Collection, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from fastllm.errors import UserValueError, check_type
from fastllm.models import pretrained
from fastllm.models.config import CONFIGS, ModelConfig, to_dict

AnyConfig = TypeVar("AnyConfig", bound=ModelConfig)
MODEL_TYPE = "model_type"  # of config.json; ours begin with
OURS = "fastllm-"


class SizedTokenizer(Protocol):
    """What check_tokenizer needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""


class PairOfVocabularies(SizedTokenizer, Protocol):
    """What an encoder-decoder's check_tokenizer needs of a tokenizer."""

    @property
    def source_vocab_size(self) -> int:
        """The number of tokens of the source."""


class Model(torch.nn.Module, Generic[AnyConfig]):
    """A model with settings, blocks and a loss.

    Attributes:
        config: its settings, all that its constructor is given.
        blocks: the layers that a model is a row of, or several rows: what is compiled, checkpointed and shared out
            apart.

    Class attributes:
        kernels: the ops that a training step, an evaluation and generation call.
        config_class: the settings' class; config_class.kind names the architecture.
    """

    kernels: ClassVar[Collection[str]]
    config_class: ClassVar[type[ModelConfig]]
    config: AnyConfig
    blocks: Iterable[torch.nn.Module]

    def __init__(self, config: AnyConfig) -> None:
        check_type(type(self).__name__, "config", config, self.config_class)
        super().__init__()
        self.config = config

    @property
    def vocab_size(self) -> int:
        """V, of the logits."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """The most tokens that are seen at once, of an encoder-decoder on either side."""
        return self.config.context_length

    def loss(self, *batch: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of a batch's targets in nats, a scalar; what a batch is, its task and the model know.

        label_smoothing is the share of each target's probability that is spread over the whole vocabulary (Szegedy et
        al., 2016).
        """
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Return how many numbers are trained; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_tokenizer(self, tokenizer: SizedTokenizer, where: object) -> None:
        """Check that a tokenizer can be this model's: it has as many tokens, or fewer.

        The model's ids beyond the tokenizer's are padding (nanoGPT has 50304 for GPT-2's 50257 tokens: multiples of 64
        multiply faster). No text has them, so they are never a target; generation that knows the tokenizer draws none.

        Args:
            tokenizer: has a vocab_size.
            where: what to begin the message with: a folder or a function's name.

        Raises:
            UserValueError: it has more tokens than the model.
        """
        if tokenizer.vocab_size > self.config.vocab_size:
            raise UserValueError(
                f"{where}: 'tokenizer' must have at most the model's {self.config.vocab_size} tokens, "
                f"got {tokenizer.vocab_size}"
            )

    def changed(self, config: AnyConfig) -> Self:
        """Return this model with other settings and the same weights; of tables that are shorter then, the beginning.

        The settings must be such as ModelConfig.may_become allows.
        """
        other = type(self)(config)
        weights = self.state_dict()
        for name, value in other.state_dict().items():
            value.copy_(weights[name][: len(value)])
        return other

    # --- files --------------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write model.safetensors and config.json into directory, which is made if missing."""
        settings = to_dict(self.config)
        config = {MODEL_TYPE: OURS + settings.pop("model"), **settings}
        pretrained.write(Path(directory), config, self.state_dict())

    @classmethod
    def from_pretrained(cls, directory: str | PathLike, **options: Any) -> Self:
        """Load a model of this class from what :func:`fastllm.models.load` reads.

        Args:
            directory: a run's folder, a model's folder (save_pretrained's, Hugging Face's), or a model in one file.
            options: dtype and device, as of load.

        Returns:
            The model in eval mode, as transformers gives it; call train() on it to train it with its dropout.

        Raises:
            FileNotFoundError: config.json or the weights are missing.
            ValueError: a file is damaged, or holds no model of this class.
            UserError: the run has no checkpoint, or it is damaged.
        """
        from fastllm.models.loading import load

        model = load(directory, **options)
        if not isinstance(model, cls):
            raise ValueError(f"{directory} holds a {type(model).__name__}, expected a {cls.__name__}")
        return model

    def save_huggingface(self, directory: str | PathLike, tokenizer: Any = None) -> None:
        """Write a directory that transformers' AutoModelForCausalLM reads, and from_pretrained too.

        Args:
            directory: is made if missing.
            tokenizer: is written beside, for AutoTokenizer and for load_tokenizer.

        Raises:
            ValueError: tokenizer has more tokens than the model, or transformers has no class for such settings.
        """
        from fastllm.models.loading import save_huggingface

        save_huggingface(self, Path(directory), tokenizer)


def config_of_ours(model_type: str, settings: dict[str, Any]) -> ModelConfig | None:
    """Return the settings that save_pretrained wrote; None if model_type is somebody else's.

    Raises:
        ValueError, TypeError: they are damaged.
    """
    kind = model_type.removeprefix(OURS)
    if kind == model_type or kind not in CONFIGS:
        return None
    return CONFIGS[kind].from_dict(settings)
