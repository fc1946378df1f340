"""The masks of attn_implementation="fastllm": what the kernels can skip is said in words, not in T x T booleans.

transformers asks a mask function once a forward, and gives what it returns to every layer's attention. None means that
all keys count. Causality, padding, windows and the place of a chunk beside a cache become a :class:`CompactMask`.
Everything else (packed sequences, chunked attention, a model's own patterns) and graphs that are being traced get the
mask of transformers' own "sdpa".
"""

# B batch, Tq queries, Tk keys

import functools
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastllm.integrations.transformers.library import check_parameters, needed

_MASKING = "transformers.masking_utils"
bidirectional_mask_function = needed(_MASKING, "bidirectional_mask_function")
causal_mask_function = needed(_MASKING, "causal_mask_function")
eager_mask = needed(_MASKING, "eager_mask")
prepare_padding_mask = needed(_MASKING, "prepare_padding_mask")
sdpa_mask = needed(_MASKING, "sdpa_mask")
PreTrainedModel = needed("transformers", "PreTrainedModel")
is_tracing = needed("transformers.utils.import_utils", "is_tracing")
logger = needed("transformers.utils.logging", "get_logger")(__name__)

_READ_ONLY = "a CompactMask has no memory to write to: write to its dense()"
# Any of these flags of a model's class says that all its attention is ready for another's masks.
_SERVED = ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend")


class CompactMask(Tensor):
    """A mask (B, 1, Tq, Tk) of booleans, as its rule: which keys count, how far a query sees.

    It has a mask's shape, dtype and device but no memory; whatever computes with it gets the dense mask instead. The
    attention of this package takes the rule.

    Args:
        shape: (B, 1, Tq, Tk).
        device: the mask's.
        causal: a query sees no key behind its own position.
        causal_align: where queries stand, as for fastllm.ops.scaled_dot_product_attention: the last at the last key
            ("bottom-right"), or the first at the first ("top-left").
        window: (left, right), as there; None is no bound.
        keys: (B, Tk) bool, which keys count; None is all.
        lengths: (B,) int64, how many keys count, from the first; None is all.
    """

    causal: bool
    causal_align: str
    window: tuple[int, int] | None
    keys: Tensor | None
    lengths: Tensor | None

    @staticmethod
    def __new__(cls, shape, device, causal, causal_align="bottom-right", window=None, keys=None, lengths=None):
        """Return a tensor of this shape that has no memory."""
        mask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        mask.causal, mask.causal_align, mask.window = causal, causal_align, window
        mask.keys, mask.lengths = keys, lengths
        return mask

    def dense(self) -> Tensor:
        """Return the mask itself, (B, 1, Tq, Tk)."""
        b, _, tq, tk = self.shape
        key, first = torch.arange(tk, device=self.device), tk - tq if self.causal_align == "bottom-right" else 0
        ahead = key - (torch.arange(tq, device=self.device)[:, None] + first)  # (Tq, Tk): key's position - query's
        left, right = self.window or (-1, -1)
        seen = ahead <= 0 if self.causal else torch.ones_like(ahead, dtype=torch.bool)
        seen = seen if left == -1 else seen & (ahead >= -left)
        seen = seen if right == -1 else seen & (ahead <= right)
        seen = seen.expand(b, 1, tq, tk)
        seen = seen if self.keys is None else seen & self.keys[:, None, None, :]
        return seen if self.lengths is None else seen & (key < self.lengths[:, None, None, None])

    def __setitem__(self, index, value):
        raise NotImplementedError(_READ_ONLY)

    def __repr__(self):  # type: ignore[override]
        rule = f"causal={self.causal}, causal_align={self.causal_align!r}, window={self.window}"
        return f"CompactMask({tuple(self.shape)}, {rule}, keys={self.keys}, lengths={self.lengths})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        if func._schema.is_mutable:
            raise NotImplementedError(_READ_ONLY)
        args, kwargs = tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **options,
) -> Tensor | None:
    """Return the mask that a model's layers give to :func:`fastllm.integrations.transformers.attention.attention`.

    It keeps the contract of transformers.masking_utils.sdpa_mask, which has these arguments (B = batch_size, Tq =
    q_length, Tk = kv_length).

    Returns:
        None where all keys count, a :class:`CompactMask`, or a bool mask that broadcasts to (B, 1, Tq, Tk). In a graph
        that is being traced, None may stand for a causal mask with Tq = Tk, too. A model whose attention does not call
        the attention interface gets the additive mask that its own code expects.
    """
    everything = {
        "batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset,
        "kv_offset": kv_offset, "mask_function": mask_function, "attention_mask": attention_mask,
        "local_size": local_size, "allow_is_causal_skip": allow_is_causal_skip,
        "allow_is_bidirectional_skip": allow_is_bidirectional_skip, "device": device, "config": config, **options,
    }  # fmt: skip
    if not _calls_the_interface(type(config)):
        return eager_mask(**everything)
    causal = allow_is_causal_skip
    window = _window(config, causal, local_size)
    plain = causal_mask_function if causal else bidirectional_mask_function
    if (
        not (allow_is_causal_skip or allow_is_bidirectional_skip)
        or (mask_function is not plain if local_size is None else window is None)
        or is_tracing(q_offset if isinstance(q_offset, Tensor) else attention_mask)
    ):
        return sdpa_mask(**everything)
    places = {0: "top-left", kv_length - q_length: "bottom-right"}
    align = places.get(int(q_offset) - kv_offset)  # of the first query among the keys
    if align is None and (causal or window is not None):
        return sdpa_mask(**everything)
    if window is not None and max(window) >= kv_length - 1:
        window = None
    keys = _padding(attention_mask, kv_length, kv_offset)
    if window is None and (not causal or (q_length == 1 and align == "bottom-right")):
        if keys is None:
            return None
        if q_length == 1:  # a step of generation: short, and there are many
            return keys[:, None, None, :]
    lengths = None
    if keys is not None:
        counts = keys.sum(-1)
        if bool((keys == (torch.arange(kv_length, device=keys.device) < counts[:, None])).all()):
            keys, lengths = None, counts  # padding stands behind the end
    shape = (batch_size, 1, q_length, kv_length)
    return CompactMask(shape, device, causal, align or "top-left", window, keys, lengths)


def _window(config: Any, causal: bool, local_size: int | None) -> tuple[int, int] | None:
    """Return a sliding window; None also where local_size is the size of a chunk."""
    chunked = getattr(config, "attention_chunk_size", None) is not None
    if local_size is None or chunked or local_size != getattr(config, "sliding_window", None):
        return None
    return (local_size - 1, 0) if causal else (local_size, local_size)


def _padding(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """Return which keys count, (B, Tk); None if all do."""
    if attention_mask is None:
        return None
    padded = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    keys = padded[:, kv_offset : kv_offset + kv_length].to(torch.bool)
    return None if bool(keys.all()) else keys


@torch.compiler.assume_constant_result
def _calls_the_interface(config_class: type) -> bool:
    return has_interface(config_class)  # torch.compile looks through functools.cache, but not into this


@functools.cache
def has_interface(config_class: type) -> bool:
    """Whether all attention of a config's models asks the attention interface, so that a mask may be bool or None.

    transformers lets models be made with any registered name, but some have attention code of their own (BLOOM), or in
    a part of them (BigBird-Pegasus): it adds the mask to its scores, and knows no None.
    """
    modeling = sys.modules.get(config_class.__module__.replace(".configuration_", ".modeling_"))
    if modeling is None:
        return True
    models: list[Any] = [
        model
        for model in vars(modeling).values()
        if isinstance(model, type) and issubclass(model, PreTrainedModel) and model.__module__ == modeling.__name__
    ]
    return not models or (
        models[0]._can_set_attn_implementation() and any(getattr(models[0], flag) for flag in _SERVED)
    )


def check_protocol() -> None:
    """Raise UserImportError if transformers calls masks or attention by other names than those used here.

    A keyword that was renamed would otherwise be lost among those that need no attention.
    """
    mask = "batch_size q_length kv_length q_offset kv_offset mask_function attention_mask local_size"
    mask += " allow_is_causal_skip allow_is_bidirectional_skip device"
    for name in (*_SERVED, "_can_set_attn_implementation"):
        needed("transformers", f"PreTrainedModel.{name}")
    check_parameters(_MASKING, "sdpa_mask", set(mask.split()))
    attention = "module query key value attention_mask dropout scaling is_causal position_bias"
    check_parameters("transformers.integrations.sdpa_attention", "sdpa_attention_forward", set(attention.split()))
