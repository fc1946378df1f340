"""The settings of a GPT."""

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from fastllm.models.config.base import ModelConfig
from fastllm.models.config.cost import BlockCost, Cost

# T tokens of context, C = n_embd channels, H heads, V vocabulary


@dataclass
class GPTConfig(ModelConfig):
    """The architecture of a GPT; the defaults are GPT-2's smallest, without its dropout.

    Args:
        vocab_size: V, token ids.
        context_length: T, tokens the model sees at once.
        n_layer: blocks.
        n_head: H, attention heads a block; must divide n_embd.
        n_embd: C, channels.
        dropout: probability of a value to be zeroed while training, in [0, 1).
        bias: whether linear and norm layers have biases.
        activation: gelu_tanh (GPT-2's form of GELU) or gelu (the exact one, nanoGPT's).

    Raises:
        ValueError: a size is not positive, n_head does not divide n_embd, dropout is not in [0, 1), or activation is
            unknown.
        TypeError: a value is of a wrong type.
    """

    kind: ClassVar[str] = "gpt"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
        "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
        "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
        "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
        "shakespeare": {
            "vocab_size": 65, "context_length": 64, "n_layer": 4, "n_head": 4, "n_embd": 128, "bias": False,
        },
    }  # fmt: skip

    vocab_size: int = 50257
    context_length: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    activation: str = "gelu_tanh"

    def __post_init__(self) -> None:
        self._check_sizes("vocab_size", "context_length", "n_layer", "n_head", "n_embd")
        self._check_types(dropout=Real, bias=bool, activation=str)
        self._require("n_embd", self.n_embd % self.n_head == 0, f"be a multiple of n_head ({self.n_head})")
        self._require("dropout", 0 <= self.dropout < 1, "be in [0, 1)")
        self._require("activation", self.activation in ("gelu_tanh", "gelu"), "be gelu_tanh or gelu")

    def cost(self) -> Cost:
        """Return what the model costs: 12 C^2 in a block's matrices, 4 C wide in the middle.

        A block keeps in float32 two residual sums, each norm's mean and 1/std, and attention's statistics, two a head;
        in the products' precision their inputs (two norms' outputs, attention's, GELU's 4 C), qkv 3 C and GELU's input,
        4 C.
        """
        c = self.n_embd
        vectors = 2 * c + (11 * c if self.bias else 0)
        block = BlockCost(
            self.n_layer, parameters=12 * c * c + vectors, matrices=12 * c * c,
            attention=c * (self.context_length + 1) / 2, kept_float32=2 * c + 4 + 2 * self.n_head, kept=14 * c,
        )  # fmt: skip
        return Cost(
            context_length=self.context_length, channels=c, blocks=(block,),
            other_parameters=(self.vocab_size + self.context_length) * c + c * (2 if self.bias else 1),
            output_matrix=self.vocab_size * c,
        )  # fmt: skip
