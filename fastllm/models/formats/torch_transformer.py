"""State dicts of models that are built around torch.nn.Transformer, to the weights of Transformer."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fastllm.errors import UserValueError, check_type
from fastllm.models.config import TransformerConfig
from fastllm.models.formats.parts import Layout, join
from fastllm.models.loading import with_weights
from fastllm.models.pretrained import check_named

if TYPE_CHECKING:
    from fastllm.models.transformer import Transformer

# C = n_embd channels, F = n_hidden, V vocabulary

MODEL = "a torch.nn.Transformer"  # in a message
_WHERE = "from_torch_transformer"
_CROSS = ("query", "key_value")  # our parts of multihead_attn.in_proj


def from_torch_transformer(
    state_dict: Mapping[str, Tensor],
    config: TransformerConfig,
    *,
    embedding: str,
    source_embedding: str | None = None,
    output: str | None = None,
    prefix: str = "",
    ignored: Iterable[str] = (),
) -> "Transformer":
    """Return a Transformer with the weights of a model of yours that is built around torch.nn.Transformer.

    That class is a part of a model only: config says what the state dict does not, such as the number of heads, the
    activation and the positions. Both end in norms: where config.norm_first is False, final_norm must be True.

    Args:
        state_dict: tensors by name; they are copied.
        config: the settings.
        embedding: the name of the target's table, (V, C).
        source_embedding: the name of the source's; None where config.share_embeddings is "all".
        output: the name of the linear layer that gives the logits; None where it shares the target's table, as
            config.share_embeddings "all" and "target" say.
        prefix: what the names of torch.nn.Transformer's tensors begin with, such as "transformer.".
        ignored: names of tensors that are not needed, such as a table of sinusoids.

    Raises:
        ValueError: a tensor is missing, left over or of another shape, or config does not fit; the message names the
            first.

    Example:
        >>> theirs = torch.nn.ModuleDict({
        ...     "transformer": torch.nn.Transformer(32, 4, 2, 2, 64, batch_first=True),
        ...     "embedding": torch.nn.Embedding(50, 32),
        ... })
        >>> config = TransformerConfig(50, 64, None, 2, 2, 4, 32, 64, final_norm=True)
        >>> from_torch_transformer(
        ...     theirs.state_dict(), config, embedding="embedding.weight", prefix="transformer."
        ... ).num_parameters()
        45440
    """
    check_type(_WHERE, "config", config, TransformerConfig)
    check_named(_WHERE, state_dict)
    needed = {"source_embedding": config.sharing != "all", "output": config.sharing == "none"}
    for name, given in (("source_embedding", source_embedding), ("output", output)):
        if (given is not None) != needed[name]:
            expected = "be given" if needed[name] else "be None"
            raise UserValueError(
                f"{_WHERE}: '{name}' must {expected}, as config.share_embeddings is {config.sharing}, got {given!r}"
            )
    if not config.ends_in_norm:
        raise UserValueError(f"{_WHERE}: 'final_norm' must be True of config, as {MODEL} ends in norms, got False")
    if config.activation == "swiglu":
        raise UserValueError(f"{_WHERE}: 'activation' must be one without gates, got {config.activation}")
    weights = {name: tensor.detach().clone() for name, tensor in state_dict.items() if name not in set(ignored)}
    names = {}
    for name in list(weights):
        own = name.removeprefix(prefix)
        if ".multihead_attn.in_proj_" in own and name.startswith(prefix):
            parts = weights.pop(name).split([config.n_embd, 2 * config.n_embd])
            for part, tensor in zip(_CROSS, parts, strict=True):
                weights[f"{name}.{part}"] = tensor
                names[f"{own}.{part}"] = f"{name}.{part}"
        else:
            names[own if name.startswith(prefix) else name] = name
    made = join(_layout(config, embedding, source_embedding, output), weights, names, MODEL)
    return with_weights(config, made)  # type: ignore[return-value]


def _layout(config: TransformerConfig, embedding: str, source_embedding: str | None, output: str | None) -> Layout:
    c, f, v = config.n_embd, config.intermediate_size, config.vocab_size
    result: Layout = {}

    def add(ours: str, theirs: str, shape: tuple[int, ...], joined: str = ".", bias: bool = config.bias) -> None:
        result[f"{ours}.weight"] = [(f"{theirs}{joined}weight", shape)]
        if bias:
            result[f"{ours}.bias"] = [(f"{theirs}{joined}bias", shape[:1])]

    for side, blocks in (("encoder", config.n_encoder_layer), ("decoder", config.n_decoder_layer)):
        for i in range(blocks):
            ours, theirs = f"{side}.{i}", f"{side}.layers.{i}"
            add(f"{ours}.attention.qkv", f"{theirs}.self_attn.in_proj", (3 * c, c), "_")
            add(f"{ours}.attention.projection", f"{theirs}.self_attn.out_proj", (c, c))
            if side == "decoder":
                for part, rows in zip(_CROSS, (c, 2 * c), strict=True):
                    for kind, shape in (("weight", (rows, c)), ("bias", (rows,)))[: 2 if config.bias else 1]:
                        name = f"{theirs}.multihead_attn.in_proj_{kind}.{part}"
                        result[f"{ours}.cross_attention.{part}.{kind}"] = [(name, shape)]
                add(f"{ours}.cross_attention.projection", f"{theirs}.multihead_attn.out_proj", (c, c))
            add(f"{ours}.feed_forward.expand", f"{theirs}.linear1", (f, c))
            add(f"{ours}.feed_forward.contract", f"{theirs}.linear2", (c, f))
            for number in range(1, 3 if side == "encoder" else 4):
                add(f"{ours}.norm_{number}", f"{theirs}.norm{number}", (c,))
        add(f"{side}_norm", f"{side}.norm", (c,))
    result["embedding.weight"] = [(embedding, (v, c))]
    if source_embedding is not None:
        result["source_embedding.weight"] = [(source_embedding, (config.source_vocabulary, c))]
    if output is not None:
        add("output", output, (v, c), bias=config.output_bias)
    return result
