"""Small models of transformers with random weights: each kind that fastllm says it serves."""

import torch
import transformers

_DECODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
_ENCODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 66, "pad_token_id": 0,
}  # fmt: skip
# A model's class, without what they have in common, and its settings.
MODELS = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": None, "pad_token_id": 0},
    ),
    "bert": ("BertForMaskedLM", _ENCODER),
    "roberta": ("RobertaForMaskedLM", _ENCODER),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
         "patch_size": 4},
    ),
    "llama": ("LlamaForCausalLM", _DECODER),
    "mistral": ("MistralForCausalLM", {**_DECODER, "sliding_window": 5}),
    "qwen2": ("Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", _DECODER),
    "gemma": ("GemmaForCausalLM", _DECODER),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
         "eos_token_id": None, "decoder_start_token_id": 0},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 4,
         "max_source_positions": 12, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": None, "decoder_start_token_id": 1, "begin_suppress_tokens": None, "suppress_tokens": None},
    ),
}  # fmt: skip
CAUSAL = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma")


def make(name: str, implementation: str = "eager", **settings) -> torch.nn.Module:
    """Return a model with random weights, the same ones every time, in evaluation."""
    class_name, config = MODELS[name]
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = kind._from_config(kind.config_class(**config, **settings), attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases and norms too
    return model.eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Return a batch of two; of a model of text with padding, on the left where it generates."""
    torch.manual_seed(1)
    tokens, keep = torch.randint(2, 64, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 4, 24), "decoder_input_ids": tokens}
    keep[0, :3] = 0 if name in CAUSAL else 1
    keep[1, 6:] = 1 if name in CAUSAL else 0
    batch = {"input_ids": tokens.where(keep == 1, 0), "attention_mask": keep}
    return {**batch, "decoder_input_ids": tokens} if name == "t5" else batch


def kept(name: str, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of tokens that are no padding."""
    decoder_only = "attention_mask" in batch and "decoder_input_ids" not in batch
    return logits[batch["attention_mask"] == 1] if decoder_only else logits
