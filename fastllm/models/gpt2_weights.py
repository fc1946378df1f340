"""GPT-2 checkpoints in Hugging Face's layout, to and from fastllm's GPT.

Their linear weights are stored transposed, (in, out), by a layer called Conv1D; and the names are those of the original
TensorFlow code.
"""

import re

from torch import Tensor

NAMES = {
    "wte.weight": "embedding.token.weight",
    "wpe.weight": "embedding.position.weight",
    "ln_f": "norm",
    "h": "blocks",
    "ln_1": "norm_1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.projection",
    "ln_2": "norm_2",
    "mlp.c_fc": "feed_forward.expand",
    "mlp.c_proj": "feed_forward.contract",
}
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")  # causal masks that old checkpoints carry
_BLOCK = re.compile(r"^h\.(\d+)\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)$")
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


def _translate(name: str) -> str:
    block = _BLOCK.match(name)
    if block:
        return f"blocks.{block[1]}.{NAMES[block[2]]}.{block[3]}"
    if name in NAMES:
        return NAMES[name]
    if name in ("ln_f.weight", "ln_f.bias"):
        return name.replace("ln_f", NAMES["ln_f"])
    raise ValueError(f"GPT-2 weights: unknown tensor '{name}'")


def from_gpt2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return GPT's state_dict made of a GPT2LMHeadModel's or GPT2Model's; weights are copied where transposed.

    Raises:
        ValueError: a tensor's name is not one of GPT-2's.
    """
    result = {}
    for name, tensor in weights.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or _BUFFERS.search(name):
            continue  # tied to wte; not a parameter
        result[_translate(name)] = tensor.t().contiguous() if _TRANSPOSED.search(name) else tensor
    return result


def config_from_gpt2(config: dict) -> dict:
    """Return GPTConfig's arguments made of a GPT-2 config.json.

    Raises:
        ValueError: the config asks for something that GPT-2 itself does not do.
    """
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"GPT-2 config: 'activation_function' must be one of {_ACTIVATIONS}, got '{activation}'")
    inner = config.get("n_inner") or 4 * config["n_embd"]
    if inner != 4 * config["n_embd"]:
        raise ValueError(f"GPT-2 config: 'n_inner' must be 4 n_embd ({4 * config['n_embd']}), got {inner}")
    for name, value in (("layer_norm_epsilon", 1e-5), ("scale_attn_weights", True),
                        ("scale_attn_by_inverse_layer_idx", False), ("tie_word_embeddings", True)):  # fmt: skip
        if config.get(name, value) != value:
            raise ValueError(f"GPT-2 config: '{name}' must be {value}, got {config[name]}")
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config.get("n_positions", 1024),
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "n_embd": config["n_embd"],
        "dropout": config.get("resid_pdrop", 0.1),
    }
