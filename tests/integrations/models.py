"""Tiny transformers models with random weights, by name: each a way in which models use attention."""

import torch
import transformers as hf

VOCABULARY = 64
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_ENCODER = {**_SIZES, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

DECODERS = {
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, **_NO_TOKENS,
    ),
    "llama": lambda: hf.LlamaConfig(**_GROUPED, **_NO_TOKENS),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=5, **_NO_TOKENS),  # a window over all layers
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED, **_NO_TOKENS),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, **_NO_TOKENS),
    "gemma": lambda: hf.GemmaConfig(**_GROUPED, **_NO_TOKENS),
    # A window in every second layer; scores are capped.
    "gemma2": lambda: hf.Gemma2Config(
        **_GROUPED, sliding_window=5, attn_logit_softcapping=0.5, query_pre_attn_scalar=8, **_NO_TOKENS
    ),
    # Sinks, and a window in every second layer.
    "gpt_oss": lambda: hf.GptOssConfig(
        **_GROUPED, sliding_window=5, num_local_experts=2, num_experts_per_tok=1, **_NO_TOKENS
    ),
    # Attention code of its own, which does not ask the attention interface.
    "bloom": lambda: hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0,
        **_NO_TOKENS,
    ),
}  # fmt: skip

ENCODERS = {
    "bert": lambda: hf.BertConfig(**_ENCODER),
    "roberta": lambda: hf.RobertaConfig(**_ENCODER),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=64, n_layers=2, n_heads=4, dim=32, hidden_dim=48, dropout=0.0,
        attention_dropout=0.0,
    ),
    # A window to both sides in every layer but the third.
    "modernbert": lambda: hf.ModernBertConfig(
        **_SIZES, local_attention=6, cls_token_id=0, sep_token_id=0, **_NO_TOKENS
    ),
}  # fmt: skip

OTHERS = {
    "vit": lambda: hf.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
    ),
    "t5": lambda: hf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, eos_token_id=None, pad_token_id=0,
    ),
    # Attention code of its own in the encoder, the interface in the decoder.
    "bigbird_pegasus": lambda: hf.BigBirdPegasusConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, dropout=0.0,
        attention_type="original_full", decoder_start_token_id=1, **_NO_TOKENS,
    ),
    "whisper": lambda: hf.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20,
        max_target_positions=32, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        **_NO_TOKENS,
    ),
}  # fmt: skip

INTERFACE = [name for name in DECODERS if name != "bloom"]
CONFIGS = {**DECODERS, **ENCODERS, **OTHERS}


def make(name, implementation="fastllm", dtype=torch.float32):
    """Return a model, in eval mode, with the same random weights whatever its attention; no bias or sink is zero."""
    torch.manual_seed(0)
    auto = hf.AutoModelForCausalLM if name in DECODERS else hf.AutoModel
    if name in ("t5", "bigbird_pegasus"):
        auto = hf.AutoModelForSeq2SeqLM
    elif name == "whisper":
        auto = hf.AutoModelForSpeechSeq2Seq
    model = auto.from_config(CONFIGS[name](), attn_implementation=implementation)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def tokens(batch=3, length=12):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(2))


def padding(kind, batch=3, length=12):
    """Return an attention mask (batch, length), or None: one row whole, the others padded by 4 and 2."""
    if kind is None:
        return None
    keep = torch.ones(batch, length, dtype=torch.long)
    for row, padded in ((0, 4), (2, 2)):
        keep[row, slice(padded) if kind == "left" else slice(length - padded, length)] = 0
    return keep


def inputs(name, kind=None, dtype=torch.float32):
    """Return a forward's arguments; `kind` is where padding stands."""
    random = torch.Generator().manual_seed(3)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=random).to(dtype)}
    if name == "whisper":
        features = torch.randn(3, 8, 40, generator=random).to(dtype)
        return {"input_features": features, "decoder_input_ids": tokens()}
    arguments = {"input_ids": tokens(), "attention_mask": padding(kind)}
    if name in ("t5", "bigbird_pegasus"):
        arguments["decoder_input_ids"] = tokens(length=9)
    return arguments


def result(model, arguments):
    """Return what a model gives where tokens are real, (N, C): eager mixes values at padded queries, we give zeros."""
    output = model(**arguments)
    output = output.logits if "logits" in output else output.last_hidden_state
    keep = arguments.get("attention_mask")
    whole = keep is None or keep.dim() != 2 or keep.shape != output.shape[:2]
    return output.flatten(0, 1) if whole else output[keep == 1]


def gradients(model, arguments):
    """Return the gradients of a model in training, by their parameters' names."""
    output = result(model.train(), arguments)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(got, expected):
    """Compare what gradients returned: float32 sums in another order, relative to the largest of a parameter."""
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (got[name] - gradient).abs().max()
        assert error <= 3e-5 * max(gradient.abs().max(), 1.0), name


def assert_bfloat16_as_good(name, ours):
    """A bfloat16 model is no further from float32's result than eager is, give or take the rounding of a result."""
    kind = None if name in ("vit", "whisper") else "right"
    low = inputs(name, kind, torch.bfloat16)
    with torch.no_grad():
        exact = result(make(name, "eager", torch.bfloat16).float(), inputs(name, kind))
        got, expected = (result(model, low).float() for model in (ours, make(name, "eager", torch.bfloat16)))
    assert (got - exact).abs().max() <= 2 * (expected - exact).abs().max() + 2**-8 * exact.abs().max()
