"""Texts for Hypothesis: all of Unicode, and what tokenizers have been known to lose."""

from hypothesis import strategies as st

TRICKY = [
    " ", "  ", "\t", "\n", "\n\n", "\r\n", "\r", "\0", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "\ufeff",
    "\u2581", "\u2585", "\ufffd", "\u2047", "e\u0301", "\u00e9", "\ufb01", "\uff76", "\u1e9e",
    "\U0001f469\u200d\U0001f4bb", "<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "'ll", "'LL", "\u2019s", "123",
    "\u0661\u0662", "speak", " hear", "!?",
]  # fmt: skip

texts = st.one_of(
    st.text(),  # every character but surrogates
    st.lists(st.one_of(st.sampled_from(TRICKY), st.characters(codec="utf-8")), max_size=30).map("".join),
)
