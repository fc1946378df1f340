"""The masks of attn_implementation="fastllm": no token sees later ones, and what can be said in words is not formed."""

import itertools
import types

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from transformers import masking_utils

from fastllm.integrations.transformers import masks
from tests.integrations.models import DECODERS, ENCODERS, INTERFACE, inputs, make, padding, tokens

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def no_dense(monkeypatch):
    """No mask may be formed in full."""

    def refuse(*args, **kwargs):
        raise AssertionError("a dense mask was formed")

    monkeypatch.setattr(masks.CompactMask, "dense", refuse)
    monkeypatch.setattr(masks, "sdpa_mask", refuse)


@pytest.fixture
def spied(monkeypatch):
    """Return the masks that models were given, as a list that grows."""
    given = []

    def spy(**arguments):
        given.append(masks.attention_mask(**arguments))
        return given[-1]

    monkeypatch.setitem(transformers.AttentionMaskInterface._global_mapping, "fastllm", spy)
    return given


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", [None, "left", "right"])
@pytest.mark.parametrize("training", [False, True])
def test_no_token_sees_later_ones(name, kind, training):
    model, changed = make(name).train(training), tokens()
    changed[:, 7:] = (changed[:, 7:] + 11) % 60 + 1
    with torch.no_grad():
        before, after = (model(ids, attention_mask=padding(kind)).logits for ids in (tokens(), changed))
    real = torch.ones(3, 7) if kind is None else padding(kind)[:, :7]
    torch.testing.assert_close(before[:, :7][real == 1], after[:, :7][real == 1], rtol=0, atol=2e-6)
    assert not torch.allclose(before[:, 7], after[:, 7])


# gpt-oss is not among them: a sink stands outside of its windows, which takes a dense mask.
@pytest.mark.parametrize("name", [name for name in INTERFACE if name != "gpt_oss"])
@pytest.mark.parametrize("kind", [None, "left", "right"])
def test_decoders_form_no_mask(name, kind, spied, no_dense):
    make(name)(**inputs(name, kind))
    assert len(spied) == (2 if name == "gemma2" else 1)
    assert all(isinstance(mask, masks.CompactMask) and mask.causal for mask in spied)
    assert any(mask.window == (4, 0) for mask in spied) == (name in ("mistral", "gemma2"))
    assert all((mask.lengths is not None) == (kind == "right") for mask in spied)
    assert all((mask.keys is not None) == (kind == "left") for mask in spied)


@pytest.mark.parametrize("kind", [None, "left"])
def test_a_static_cache_takes_no_mask_for_the_prompt(kind, spied, no_dense):
    cache = transformers.StaticCache(config=DECODERS["llama"](), max_cache_len=20)
    make("llama")(tokens(), attention_mask=padding(kind), cache=cache)
    assert spied[0].causal_align == "top-left" and spied[0].shape == (3, 1, 12, 20)


@pytest.mark.parametrize("name", [*ENCODERS, "vit", "t5"])
def test_encoders_form_no_mask(name, spied, no_dense):
    make(name)(**inputs(name))
    own = [mask for mask in spied if mask is not None]
    assert all(isinstance(mask, masks.CompactMask) for mask in own)
    assert name in ("modernbert", "t5") or not own  # a window, and a causal decoder


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_skip_what_is_behind_the_end(name, spied, no_dense):
    make(name)(**inputs(name, "right"))
    assert spied and all(mask.lengths.tolist() == [8, 12, 10] and mask.keys is None for mask in spied)


def test_steps_of_generation_form_a_row(spied, no_dense):
    make("llama").generate(tokens(), attention_mask=padding("left"), max_new_tokens=4, do_sample=False)
    assert [tuple(mask.shape) for mask in spied[1:]] == [(3, 1, 1, length) for length in (13, 14, 15)]


LENGTHS = [(1, 1), (1, 6), (5, 5), (5, 6), (2, 9), (9, 9)]  # (Tq, Tk): a step, a prompt, a chunk behind a cache


@pytest.mark.parametrize(("q_length", "kv_length"), LENGTHS)
@pytest.mark.parametrize(("at_the_end", "kv_offset"), [(True, 0), (True, 3), (False, 0)])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_equal_those_of_sdpa(q_length, kv_length, at_the_end, kv_offset, causal):
    """A sliding cache has forgotten the first 3 keys; a static one has room behind the prompt."""
    total = kv_length + kv_offset
    for window, keep in itertools.product([None, 1, 4, 6, 9, 10], paddings(kv_offset, total)):
        pattern = {
            (True, True): masking_utils.causal_mask_function,
            (True, False): masking_utils.sliding_window_causal_mask_function(window),
            (False, True): masking_utils.bidirectional_mask_function,
            (False, False): masking_utils.sliding_window_bidirectional_mask_function(window),
        }[causal, window is None]
        arguments = {
            "batch_size": 3, "q_length": q_length, "kv_length": kv_length, "kv_offset": kv_offset,
            "q_offset": total - q_length if at_the_end else torch.zeros((), dtype=torch.long),
            "mask_function": pattern, "attention_mask": keep, "local_size": window,
            "config": types.SimpleNamespace(sliding_window=window),
        }  # fmt: skip
        got = masks.attention_mask(**arguments, allow_is_causal_skip=causal, allow_is_bidirectional_skip=not causal)
        expected = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
        assert got is None or isinstance(got, masks.CompactMask) or got.shape[2] == 1
        got = torch.ones(1, dtype=torch.bool) if got is None else got & True
        assert torch.equal(got.expand_as(expected), expected), (window, keep)


def paddings(begin, end):
    """Yield masks of padding (3, end): the first, the last or some of keys [begin, end) do not count in some rows."""
    whole = torch.ones(3, end, dtype=torch.bool)
    left, right = whole.clone(), whole.clone()
    left[0, : begin + 2] = False
    right[0, end - 1] = False
    holes = torch.rand(3, end, generator=torch.Generator().manual_seed(end)) < 0.7
    yield from (None, whole, left, right, holes, whole[:, :-1])  # what is missing counts as padding


def test_other_patterns_stay_dense():
    """A chunk is no window, and a mask that is to be joined with another must be one."""
    plain = {"batch_size": 1, "q_length": 6, "kv_length": 6}
    chunked = masking_utils.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    config = types.SimpleNamespace(sliding_window=4, attention_chunk_size=4)
    mask = masks.attention_mask(**plain, mask_function=chunked, local_size=4, config=config)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, masking_utils.sdpa_mask(**plain, mask_function=chunked, local_size=4))
    assert type(masks.attention_mask(**plain, allow_is_causal_skip=False)) is torch.Tensor
    own = masking_utils.and_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k != 2)
    keep = torch.ones(1, 6, dtype=torch.bool)
    keep[:, 0] = False
    assert type(masks.attention_mask(**plain, mask_function=own, attention_mask=keep)) is torch.Tensor


def test_a_compact_mask_is_a_mask():
    """Code that computes with it gets the dense one."""
    mask = masks.CompactMask(
        (2, 1, 3, 4), "cpu", True, "bottom-right", (1, 0), torch.tensor([[True] * 4, [False] + [True] * 3])
    )
    dense = mask.dense()
    assert (mask.shape, mask.dtype, mask.ndim) == (dense.shape, torch.bool, 4)
    assert dense[0, 0].int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert dense[1, 0].int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(mask[..., :2], dense[..., :2]) and torch.equal(~mask, ~dense)
    assert torch.equal(torch.zeros(2, 1, 3, 4).masked_fill(mask, 1.0), dense.float())
    assert mask.to("meta").shape == dense.shape and "window=(1, 0)" in repr(mask)
    with pytest.raises(NotImplementedError, match="no memory to write to"):
        mask[:, :, 0] = True
    with pytest.raises(NotImplementedError, match="no memory to write to"):
        mask.fill_(True)
