"""The settings of Llama and its kin."""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar

from fastllm.models.config.base import ModelConfig
from fastllm.models.config.cost import BlockCost, Cost

# T tokens of context, C = n_embd channels, H heads, K heads of keys and values, D head_dim, F hidden, V vocabulary

ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")


@dataclass
class LlamaConfig(ModelConfig):
    """The architecture of Llama and its kin: Mistral (window), Qwen2 (qkv_bias), Qwen3 (qk_norm, head_dim).

    The defaults are those of Llama 2 7B.

    Args:
        vocab_size: V, token ids.
        context_length: T, tokens the model was trained to see at once.
        n_layer: blocks.
        n_head: H, attention heads a block.
        n_kv_head: K, heads of keys and values, each shared by H / K queries; the default is n_head.
        n_embd: C, channels.
        head_dim: D, channels of a head, even; the default is n_embd / n_head.
        n_hidden: F, channels in the middle of the feed-forward network; the default is 8/3 n_embd, rounded up to a
            multiple of 256.
        dropout: probability of a value to be zeroed while training, in [0, 1).
        norm_eps: added to a mean square before its root.
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalised, each head by itself.
        window: how many tokens back a token sees, itself included; the default is all.
        tie_embeddings: whether the output layer shares the token embedding's weights.
        rope_base: of rotary positions: the slowest pair takes nearly 2 pi rope_base positions a turn.
        rope_scaling: for contexts longer than the model was first trained with: none, linear, llama3 or yarn.
        rope_factor: how many times longer.
        rope_context: the context length of the first training; the default is context_length.
        rope_low_frequency: llama3: pairs that turn less often than this in rope_context are slowed down by the factor.
        rope_high_frequency: llama3: those that turn more often are left alone.
        rope_beta_fast: yarn: pairs that turn more often than this in rope_context are left alone.
        rope_beta_slow: yarn: those that turn less often are slowed down by the factor.
        rope_attention: yarn: what queries and keys are multiplied with; the default is 0.1 ln(rope_factor) + 1.

    Raises:
        ValueError: a size is not positive or does not divide another, or a value is out of its range.
        TypeError: a value is of a wrong type.
    """

    kind: ClassVar[str] = "llama"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama2-7b": {"context_length": 4096},
        "llama3.2-1b": {
            "vocab_size": 128256, "context_length": 131072, "n_layer": 16, "n_head": 32, "n_kv_head": 8, "n_embd": 2048,
            "head_dim": 64, "n_hidden": 8192, "tie_embeddings": True, "rope_base": 500000.0, "rope_scaling": "llama3",
            "rope_factor": 32.0, "rope_context": 8192,
        },
        "smollm2-135m": {
            "vocab_size": 49152, "context_length": 8192, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576,
            "n_hidden": 1536, "tie_embeddings": True, "rope_base": 100000.0,
        },
        "shakespeare": {
            "vocab_size": 65, "context_length": 64, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 128,
            "n_hidden": 384, "tie_embeddings": True,
        },
    }  # fmt: skip

    vocab_size: int = 32000
    context_length: int = 4096
    n_layer: int = 32
    n_head: int = 32
    n_kv_head: int | None = None
    n_embd: int = 4096
    head_dim: int | None = None
    n_hidden: int | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    tie_embeddings: bool = False
    rope_base: float = 10000.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_context: int | None = None
    rope_low_frequency: float = 1.0
    rope_high_frequency: float = 4.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_attention: float | None = None

    def __post_init__(self) -> None:
        self._check_sizes("vocab_size", "context_length", "n_layer", "n_head", "n_embd")
        self._check_sizes(
            *(name for name in ("n_kv_head", "head_dim", "n_hidden", "window", "rope_context")
              if getattr(self, name) is not None)
        )  # fmt: skip
        self._check_types(
            dropout=Real, norm_eps=Real, qkv_bias=bool, qk_norm=bool, tie_embeddings=bool, rope_base=Real,
            rope_scaling=str, rope_factor=Real, rope_low_frequency=Real, rope_high_frequency=Real, rope_beta_fast=Real,
            rope_beta_slow=Real,
        )  # fmt: skip
        self._require("n_head", self.n_head % self.kv_heads == 0, f"be a multiple of n_kv_head ({self.kv_heads})")
        if self.head_dim is None:
            self._require("n_embd", self.n_embd % self.n_head == 0, f"be a multiple of n_head ({self.n_head})")
        self._require("head_dim", self.head_size % 2 == 0, "be even, as pairs of channels turn")
        self._require("dropout", 0 <= self.dropout < 1, "be in [0, 1)")
        self._require("norm_eps", self.norm_eps >= 0, "be at least 0")
        self._require("rope_base", self.rope_base > 1, "be over 1")
        if self.rope_attention is not None:
            self._check_types(rope_attention=Real)
            self._require("rope_attention", self.rope_attention > 0, "be positive")
        self._require("rope_scaling", self.rope_scaling in ROPE_SCALINGS, f"be one of {', '.join(ROPE_SCALINGS)}")
        self._require("rope_factor", self.rope_factor >= 1, "be at least 1")
        self._require(
            "rope_high_frequency", self.rope_high_frequency > self.rope_low_frequency,
            f"be greater than rope_low_frequency ({self.rope_low_frequency})",
        )  # fmt: skip
        self._require(
            "rope_beta_fast", self.rope_beta_fast > self.rope_beta_slow > 0,
            f"be greater than rope_beta_slow ({self.rope_beta_slow}), which must be positive",
        )  # fmt: skip

    @property
    def kv_heads(self) -> int:
        """K, with the default filled in."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_size(self) -> int:
        """D, with the default filled in."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def intermediate_size(self) -> int:
        """F, with the default filled in."""
        return -(-8 * self.n_embd // (3 * 256)) * 256 if self.n_hidden is None else self.n_hidden

    def may_become(self, name: str, value: Any) -> bool:
        """Return whether trained weights still fit: positions turn, so a context may be longer too."""
        return name in ("dropout", "context_length", "window") or name.startswith("rope_")

    def adapted(self, **changes: Any) -> "LlamaConfig":
        """Return the settings of trained weights with changes.

        Scaling is relative to the context of the first training, which stays what it was when context_length changes.

        Raises:
            ValueError: the settings do not go together, or the context is longer than positions are scaled for.
        """
        first = self.rope_context or self.context_length
        changed = replace(self, **changes)
        if changed.rope_scaling != "none" and changed.rope_context is None:
            changed = replace(changed, rope_context=first)
        reach = 0.0 if changed.rope_scaling == "none" else changed.rope_factor * (changed.rope_context or first)
        if changed.context_length > max(self.context_length, reach):
            factor = changed.context_length / first
            raise ValueError(
                f"LlamaConfig: 'context_length' ({changed.context_length}) is longer than what the model was trained "
                f"with ({self.context_length}), and it has not learnt the positions beyond that: scale them with "
                f"--rope_scaling yarn --rope_factor {factor:.4g} --rope_context {first}"
            )
        return changed

    def cost(self) -> Cost:
        """Return what the model costs.

        A block keeps in float32 two residual sums, each norm's 1/rms, and attention's statistics, two a head; in the
        products' precision their inputs (two norms' outputs, attention's, SwiGLU's), rotated qkv, and gate and up.
        """
        c, f, t = self.n_embd, self.intermediate_size, self.context_length
        queries, heads = self.n_head * self.head_size, (self.n_head + 2 * self.kv_heads) * self.head_size
        normed = (self.n_head + self.kv_heads) * self.head_size if self.qk_norm else 0
        matrices = c * heads + queries * c + 3 * c * f
        vectors = 2 * c + (heads if self.qkv_bias else 0) + (2 * self.head_size if self.qk_norm else 0)
        seen = min(self.window or t, t)
        block = BlockCost(
            self.n_layer, parameters=matrices + vectors, matrices=matrices,
            attention=queries * seen * (t - (seen - 1) / 2) / t,
            kept_float32=2 * c + 2 + 2 * self.n_head + (self.n_head + self.kv_heads if self.qk_norm else 0),
            kept=2 * c + heads + normed + queries + 3 * f,
        )  # fmt: skip
        return Cost(
            context_length=t, channels=c, blocks=(block,),
            other_parameters=self.vocab_size * c * (1 if self.tie_embeddings else 2) + c,
            output_matrix=self.vocab_size * c,
        )  # fmt: skip
