"""The settings of the encoder-decoder Transformer."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from fastllm.models.config.base import ModelConfig
from fastllm.models.config.cost import BlockCost, Cost

# T tokens of context, C = n_embd channels, H heads, F hidden, V vocabulary

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "swiglu")
POSITIONS = ("sinusoidal", "sinusoidal_halves", "learned", "none")
SHARING = ("all", "target", "none")


@dataclass
class TransformerConfig(ModelConfig):
    """The architecture of "Attention is all you need" (Vaswani et al., 2017); the defaults are its base model.

    Args:
        vocab_size: V, token ids of the target; of the source too, unless that has a vocabulary of its own.
        context_length: T, the most tokens that a source or a target has.
        source_vocab_size: token ids of the source; the default is vocab_size, which means the same vocabulary.
        n_encoder_layer: blocks of the encoder.
        n_decoder_layer: blocks of the decoder; one or two behind a deep encoder translate nearly as well in a fraction
            of the time (Kasai et al., "Deep encoder, shallow decoder", 2021).
        n_head: H, attention heads a block; must divide n_embd.
        n_embd: C, channels.
        n_hidden: F, channels in the middle of the feed-forward network; the default is 4 n_embd.
        dropout: probability of a value of a sub-layer's output, or of an embedding, to be zeroed while training.
        attention_dropout: the same of an attention weight.
        activation_dropout: the same of a value in the middle of the feed-forward network.
        activation: of the feed-forward network: relu, gelu, gelu_tanh, silu, or swiglu, whose n_hidden channels have a
            second matrix as their gates.
        norm_first: whether norms stand before the sub-layers ("pre-norm", which deep models need), not behind the
            residuals as in the paper.
        final_norm: whether encoder and decoder end in one more norm where norms stand behind sub-layers, as
            torch.nn.Transformer's do; where norms stand before they always do.
        norm_eps: added to a variance before its root.
        bias: whether linear and norm layers have biases.
        output_bias: whether the output layer has one.
        positions: sinusoidal (the paper's: sines in the even channels, cosines in the odd ones), sinusoidal_halves
            (sines in the first half, as Marian has them), learned, or none.
        share_embeddings: whose tables are one: all (source, target and output), target (target and output) or none;
            the default is all where source and target have one vocabulary, else target.
        scale_embeddings: whether embeddings are multiplied with sqrt(n_embd).

    Raises:
        ValueError: a size is not positive, n_head does not divide n_embd, or a value is out of its range.
        TypeError: a value is of a wrong type.
    """

    kind: ClassVar[str] = "transformer"
    task: ClassVar[str] = "translation"
    default_preset: ClassVar[str] = "tiny"
    recipe: ClassVar[dict[str, Any]] = {
        "schedule": "noam", "warmup_steps": 1000, "beta2": 0.98, "weight_decay": 0.0, "label_smoothing": 0.1,
    }  # fmt: skip
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "vocab_size": 8000, "context_length": 256, "n_encoder_layer": 4, "n_decoder_layer": 2, "n_head": 4,
            "n_embd": 256, "n_hidden": 1024, "norm_first": True,
        },
        "micro": {
            "vocab_size": 1000, "context_length": 128, "n_encoder_layer": 2, "n_decoder_layer": 1, "n_head": 4,
            "n_embd": 128, "n_hidden": 512, "norm_first": True,
        },
        "small": {"vocab_size": 10000, "context_length": 256, "n_head": 4, "n_hidden": 1024, "dropout": 0.3},
        "base": {},
        "big": {"n_head": 16, "n_embd": 1024, "dropout": 0.3},
        "deep": {"n_encoder_layer": 12, "n_decoder_layer": 1, "norm_first": True},
    }  # fmt: skip

    vocab_size: int = 37000
    context_length: int = 512
    source_vocab_size: int | None = None
    n_encoder_layer: int = 6
    n_decoder_layer: int = 6
    n_head: int = 8
    n_embd: int = 512
    n_hidden: int | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: str = "relu"
    norm_first: bool = False
    final_norm: bool = False
    norm_eps: float = 1e-5
    bias: bool = True
    output_bias: bool = False
    positions: str = "sinusoidal"
    share_embeddings: str | None = None
    scale_embeddings: bool = True

    def __post_init__(self) -> None:
        self._check_sizes("vocab_size", "context_length", "n_encoder_layer", "n_decoder_layer", "n_head", "n_embd")
        self._check_sizes(*(n for n in ("source_vocab_size", "n_hidden") if getattr(self, n) is not None))
        self._check_types(
            dropout=Real, attention_dropout=Real, activation_dropout=Real, activation=str, norm_first=bool,
            final_norm=bool, norm_eps=Real, bias=bool, output_bias=bool, positions=str, scale_embeddings=bool,
        )  # fmt: skip
        self._require("n_embd", self.n_embd % self.n_head == 0, f"be a multiple of n_head ({self.n_head})")
        if self.positions.startswith("sinusoidal"):
            self._require("n_embd", self.n_embd % 2 == 0, "be even, as a position is pairs of a sine and a cosine")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "be in [0, 1)")
        self._require("norm_eps", self.norm_eps >= 0, "be at least 0")
        self._require("activation", self.activation in ACTIVATIONS, f"be one of {', '.join(ACTIVATIONS)}")
        self._require("positions", self.positions in POSITIONS, f"be one of {', '.join(POSITIONS)}")
        if self.share_embeddings is not None:
            self._require("share_embeddings", self.share_embeddings in SHARING, f"be one of {', '.join(SHARING)}")
            self._require(
                "share_embeddings", self.share_embeddings != "all" or self.source_vocab_size in (None, self.vocab_size),
                f"be target or none where the source's vocabulary ({self.source_vocab_size}) is not the target's "
                f"({self.vocab_size})",
            )  # fmt: skip

    @property
    def source_vocabulary(self) -> int:
        """Token ids of the source, with the default filled in."""
        return self.vocab_size if self.source_vocab_size is None else self.source_vocab_size

    @property
    def sharing(self) -> str:
        """Whose tables are one, with the default filled in."""
        return self.share_embeddings or ("all" if self.source_vocab_size is None else "target")

    @property
    def ends_in_norm(self) -> bool:
        """Whether encoder and decoder end in a norm."""
        return self.norm_first or self.final_norm

    @property
    def intermediate_size(self) -> int:
        """F, with the default filled in."""
        return 4 * self.n_embd if self.n_hidden is None else self.n_hidden

    def may_become(self, name: str, value: Any) -> bool:
        """Return whether trained weights still fit: dropout is none of theirs, nor are positions that are computed."""
        if name == "context_length":
            return self.positions != "learned" or (isinstance(value, Integral) and value < self.context_length)
        return name.endswith("dropout")

    def cost(self) -> Cost:
        """Return what the model costs: 4 C^2 in the matrices of an attention, 2 C F (SwiGLU: 3 C F) in a feed-forward.

        For its backward a block keeps, in float32, a residual sum with its mean and 1/std for each sub-layer, and
        attention's statistics, two a head; in the products' precision each sub-layer's input, queries, keys and
        values, what attention gives, and the middle of the feed-forward network before and behind its activation
        (of ReLU only behind).
        """
        c, f, t, h = self.n_embd, self.intermediate_size, self.context_length, self.n_head
        gated, bias, norm = self.activation == "swiglu", int(self.bias), c * (2 if self.bias else 1)
        attention, feed_forward = 4 * c * c, (3 if gated else 2) * c * f
        vectors = bias * ((2 * f if gated else f) + c)
        middle = {"relu": f, "swiglu": 3 * f}.get(self.activation, 2 * f)
        encoder = BlockCost(
            self.n_encoder_layer, parameters=attention + feed_forward + vectors + bias * 4 * c + 2 * norm,
            matrices=attention + feed_forward, attention=c * t,
            kept_float32=2 * (c + 2) + 2 * h, kept=6 * c + middle,
        )  # fmt: skip
        decoder = BlockCost(
            self.n_decoder_layer, parameters=2 * attention + feed_forward + vectors + bias * 8 * c + 3 * norm,
            matrices=2 * attention + feed_forward, attention=c * (t + 1) / 2 + c * t,
            kept_float32=3 * (c + 2) + 4 * h, kept=11 * c + middle,
        )  # fmt: skip
        tables = {"all": 1, "target": 1, "none": 2}[self.sharing] * self.vocab_size
        tables += 0 if self.sharing == "all" else self.source_vocabulary
        tables += 2 * t if self.positions == "learned" else 0
        others = (2 * norm if self.ends_in_norm else 0) + (self.vocab_size if self.output_bias else 0)
        return Cost(
            context_length=t, channels=c, blocks=(encoder, decoder), other_parameters=tables * c + others,
            output_matrix=self.vocab_size * c,
        )  # fmt: skip
