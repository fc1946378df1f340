"""Hugging Face transformers: its models attend with fastllm's kernels.

import fastllm.integrations.transformers
fastllm.integrations.transformers.register()
model = AutoModel.from_pretrained(folder, attn_implementation="fastllm")  # or model.set_attn_implementation("fastllm")
"""


def register() -> None:
    """Make attn_implementation="fastllm" known to transformers: its attention and, with it, its masks.

    Both go under one name: transformers gives an attention without a mask function of its own no mask at all, and
    causality would be lost. Calling it again changes nothing.

    Raises:
        UserImportError: transformers is not installed, or its version lacks a name that is used here.
    """
    from fastllm.integrations.transformers.attention import attention
    from fastllm.integrations.transformers.library import needed
    from fastllm.integrations.transformers.masks import attention_mask, check_protocol

    check_protocol()
    masks, attentions = (needed("transformers", f"Attention{kind}Interface") for kind in ("Mask", ""))
    masks.register("fastllm", attention_mask)
    attentions.register("fastllm", attention)
