"""The benchmarks' own code: what no measurement shows to be wrong until it is on a GPU."""

import pytest
import torch

from benchmarks import bench_attention, bench_gpt, harness
from benchmarks.bench_attention import Shape
from benchmarks.harness import OURS, Case, Setting
from fastllm.models import GPTConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, of its FlexAttention

# Every kind of bench_attention.SHAPES, small.
SMALL = (
    Shape(2, 3, 20, 8), Shape(2, 3, 20, 8, dropout=0.1), Shape(1, 2, 20, 8, is_causal=False),
    Shape(1, 4, 20, 8, kv_heads=2), Shape(1, 2, 20, 8, window=7),
)  # fmt: skip


def visible(shape):
    query, key = torch.arange(shape.t)[:, None], torch.arange(shape.t)
    seen = (key <= query) | (not shape.is_causal)
    return seen & (query - key < shape.window) if shape.window else seen


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_flops_are_those_of_the_scores_that_count(shape):
    assert shape.flops == 4 * shape.b * shape.h * shape.d * visible(shape).expand(shape.t, shape.t).sum()


@pytest.mark.filterwarnings("ignore:.*kernel:UserWarning")  # torch says why one does not serve
def test_attention_agrees_with_its_peers():
    """Those that the CPU has; the others are left out."""
    for case in bench_attention.cases(SMALL):
        peers = set(case.peers)
        harness.check(case)
        assert {OURS, "torch"} <= set(case.peers)
        assert "SDPA cuDNN" in case.skipped
        assert set(case.peers) | set(case.skipped) == peers


def test_flex_attention_sees_the_same_window(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    shape = SMALL[-1]
    inputs = [x.detach() for x in shape.make()]  # on a CPU it has no gradient
    expected = bench_attention.ours(shape)(*inputs)
    torch.testing.assert_close(bench_attention.flex(shape)(*inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_gpu(gpu, dtype):
    setting = Setting("cuda", dtype)
    for case in bench_attention.cases(SMALL):
        with setting.making():
            inputs = case.setup()
        outputs = case.peers[OURS](*inputs)
        assert all(x.device.type == "cuda" and x.dtype == dtype for x in (*inputs[:3], *outputs))
        if case.tolerance is None:
            continue
        expected = case.peers["torch"](*(x.detach().cpu().requires_grad_(x.requires_grad) for x in inputs))
        for ours, theirs in zip(outputs, expected, strict=True):
            error = (ours.cpu().float() - theirs.float()).abs().max()
            assert error <= max(case.tolerance, setting.resolution) * theirs.abs().max()


def test_training_steps_on_a_gpu(gpu, monkeypatch):
    """The first losses of the peers agree, or there is no case; and a graph can capture ours."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    config = GPTConfig(vocab_size=20, context_length=8, n_layer=1, n_head=2, n_embd=16)
    setting = Setting("cuda", torch.bfloat16)
    case = bench_gpt.step_case("training step", "small", config, 2, False, None, setting)
    with setting.making():
        inputs = case.setup()
    (first,) = case.peers[OURS](*inputs)
    with gpu.captured() as graph:
        (loss,) = case.peers[OURS](*inputs)
    for _ in range(5):
        graph.replay()
    assert loss.item() < first.item()


def case_of(peer, tolerance=1e-4):
    return Case("double", "3", lambda: (torch.ones(3),), {OURS: lambda x: [2 * x], "peer": peer}, tolerance=tolerance)


@pytest.mark.parametrize("tolerance", [1e-4, None])
def test_a_peer_that_cannot_is_left_out(tolerance):
    def unable(x):
        raise RuntimeError("No available kernel.\nWhat follows is long.")

    case = case_of(unable, tolerance)
    harness.check(case)
    assert set(case.peers) == {OURS}
    assert case.skipped == {"peer": "No available kernel."}


def test_a_peer_that_fails_later_is_left_out():
    calls = iter(range(10**9))

    def unable(x):
        if next(calls) > 0:
            raise RuntimeError("cannot be captured")
        return [2 * x]

    row = harness.measure(case_of(unable), rounds=3)
    assert set(row["seconds"]) == {OURS}
    assert "peer skipped: cannot be captured" in harness.describe(row, {})


def test_a_peer_that_differs_stops_the_case():
    with pytest.raises(AssertionError, match="output 0 of peer differs from fastllm's by 1"):
        harness.check(case_of(lambda x: [x]))


@pytest.mark.parametrize(
    ("rate", "text"), [(812.0, "812 GFLOP/s (50% of matmul)"), (412_345.0, "412 TFLOP/s (50% of matmul)")]
)
def test_units(rate, text):
    assert harness.share({"gflop_s": rate}, {"matmul_gflop_s": 2 * rate}) == text


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 17, "CPU (Zen 4)"),
        ("AuthenticAMD", 25, 1, "CPU (Zen 3)"),
        ("AuthenticAMD", 26, 2, "CPU (Zen 5)"),
        ("GenuineIntel", 6, 207, "CPU (Emerald Rapids)"),
        ("GenuineIntel", 6, 1, "CPU (family 6, model 1)"),
    ],
)
def test_a_result_names_the_microarchitecture(vendor, family, model, name):
    text = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: CPU\n\n"
    assert harness.cpu_name(2 * text) == name
