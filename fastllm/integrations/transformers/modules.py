"""Drop-ins for the modules that transformers' models are made of: norms, activations, rotations, feed-forward parts.

Each derives from transformers' class, as fastllm.nn's do from torch's, and overrides what it computes. Before the first
is put into a model it is tried beside theirs on a few random numbers, so that an update of transformers that renames a
class or changes what it does is an error with the class's name, not a wrong result.
"""

import functools
import importlib
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._bare import is_untouched
from fastllm.nn._fused import activate, add_and_norm, form_of

# B batch, H heads, T tokens, D head_dim, C channels

# What a part of a small model is made of; theirs read what they need from it.
_SMALL = SimpleNamespace(
    hidden_size=8, intermediate_size=12, num_attention_heads=2, num_key_value_heads=1, head_dim=4, attention_bias=True,
    attention_dropout=0.0, rms_norm_eps=1e-6, layer_norm_eps=1e-5, hidden_dropout_prob=0.0, hidden_act="gelu",
    mlp_bias=True, dim=8, hidden_dim=12, dropout=0.0, activation="gelu", chunk_size_feed_forward=0, resid_pdrop=0.0,
    activation_function="gelu_new", sliding_window=None, layer_types=["full_attention"], use_sliding_window=False,
    use_bidirectional_attention=False, _attn_implementation="eager",
)  # fmt: skip


class _Part:
    """What overrides methods of a class of transformers', which it goes before."""

    if TYPE_CHECKING:
        forward: Callable[..., Any]

        def __getattr__(self, name: str) -> Any: ...

    @staticmethod
    def unless(module: Any) -> str:
        """Say in half a sentence what of a module of theirs ours does not do; "" if it does all."""
        return ""

    @staticmethod
    def methods(theirs: Any) -> dict[str, Callable]:
        """Return methods that are made from theirs."""
        return {}

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        """Return a small module of theirs, and arguments for it."""
        return theirs(_SMALL), (torch.randn(2, 3, 8),)


class _RMSNorm(_Part):
    """A root-mean-square norm whose scale is its weight."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)
        return ops.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        return theirs(8), (torch.randn(3, 8),)


class _UnitOffsetRMSNorm(_Part):
    """Gemma's: the scale is 1 + weight, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        return ops.rms_norm(x, self.weight.shape, 1 + self.weight, self.eps)

    example = _RMSNorm.example


class _Activation(_Part):
    """GELU in one of its forms."""

    form: str

    def forward(self, input: Tensor) -> Tensor:
        return ops.gelu(input, self.form)

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        return theirs(), (torch.randn(3, 8),)


class _ExactGELU(_Activation):
    form = "none"

    @staticmethod
    def unless(module: Any) -> str:
        return "" if module.act is torch.nn.functional.gelu else "use_gelu_python=True"


class _TanhGELU(_Activation):
    form = "tanh"


class _GatedMLP(_Part):
    """down(silu(gate(x)) * up(x)), with silu and the product in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_untouched(self.act_fn):
            return super().forward(x)
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))

    @staticmethod
    def unless(module: Any) -> str:
        name = type(module.act_fn).__name__
        return "" if name in ("SiLU", "SiLUActivation") else f"its activation is {name}, not SiLU"

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        return theirs(SimpleNamespace(**{**vars(_SMALL), "hidden_act": "silu"})), (torch.randn(2, 3, 8),)


class _Intermediate(_Part):
    """BERT's: activation(dense(x)), the bias on the activation's pass."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _activate(self.dense, self.intermediate_act_fn, hidden_states)


class _Output(_Part):
    """BERT's: norm(dropout(dense(x)) + residual), all behind the product in one pass."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return add_and_norm(input_tensor, self.dense(hidden_states), self.dropout, self.LayerNorm)[0]

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        module = theirs(_SMALL)
        return module, (torch.randn(2, 3, module.dense.in_features), torch.randn(2, 3, 8))


class _ViTMLP(_Part):
    """fc2(activation(fc1(x))), the bias on the activation's pass."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(_activate(self.fc1, self.activation_fn, hidden_states))


class _FFN(_Part):
    """DistilBERT's: dropout(lin2(activation(lin1(x)))), the bias on the activation's pass."""

    def ff_chunk(self, input: Tensor) -> Tensor:
        return self.dropout(self.lin2(_activate(self.lin1, self.activation, input)))


class _Conv1D(_Part):
    """GPT-2's linear layer, whose weight is (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.t(), self.bias)

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        return theirs(6, 8), (torch.randn(2, 3, 8),)


class _RotatedAttention(_Part):
    """Attention whose queries and keys are turned by ops.rotary_embedding; all else is theirs."""

    @staticmethod
    def methods(theirs: Any) -> dict[str, Callable]:
        return {"forward": _with_global(theirs.forward, "apply_rotary_pos_emb", rotate)}

    @staticmethod
    def example(theirs: Any) -> tuple[torch.nn.Module, tuple]:
        angles = torch.randn(2, 3, 2).repeat(1, 1, 2)
        return theirs(_SMALL, 0), (torch.randn(2, 3, 8), (angles.cos(), angles.sin()), None)


# The file of transformers, its classes, and what each becomes.
_FILES: dict[str, dict[str, type[_Part]]] = {
    "activations": {
        "GELUActivation": _ExactGELU, "GELUTanh": _TanhGELU, "NewGELUActivation": _TanhGELU,
        "FastGELUActivation": _TanhGELU, "AccurateGELUActivation": _TanhGELU,
    },
    "pytorch_utils": {"Conv1D": _Conv1D},
    "models.bert.modeling_bert": {
        "BertIntermediate": _Intermediate, "BertSelfOutput": _Output, "BertOutput": _Output,
    },
    "models.roberta.modeling_roberta": {
        "RobertaIntermediate": _Intermediate, "RobertaSelfOutput": _Output, "RobertaOutput": _Output,
    },
    "models.distilbert.modeling_distilbert": {"FFN": _FFN},
    "models.vit.modeling_vit": {"ViTMLP": _ViTMLP},
    "models.t5.modeling_t5": {"T5LayerNorm": _RMSNorm},
    "models.gemma.modeling_gemma": {"GemmaRMSNorm": _UnitOffsetRMSNorm, "GemmaAttention": _RotatedAttention},
    **{
        f"models.{name.lower()}.modeling_{name.lower()}": {
            f"{name}RMSNorm": _RMSNorm, f"{name}MLP": _GatedMLP, f"{name}Attention": _RotatedAttention,
        }
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3")
    },
}  # fmt: skip


def drop_in(module: torch.nn.Module) -> tuple[type[torch.nn.Module] | None, str]:
    """Return the class that does what a module of transformers does, or None and why not, as fastllm.nn's drop_in.

    Raises:
        RuntimeError: transformers has renamed or changed a class that this version of fastllm knows.
    """
    theirs = type(module)
    root, _, file = theirs.__module__.partition(".")
    if root != "transformers" or file not in _FILES:
        return None, ""
    classes = _made(file)
    ours = classes.get(theirs.__name__)
    if ours is None or ours.__bases__[-1] is not theirs:
        return None, ""
    reason = ours.unless(module)
    return (None, reason) if reason else (ours, "")


def __getattr__(name: str) -> Any:
    """Find a class that was made before, in the process that pickled a module of it."""
    for file, classes in _FILES.items():
        if name in classes:
            return _made(file)[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@functools.cache
def _made(file: str) -> dict[str, Any]:
    """Return our classes for a file of transformers', by theirs' names, each tried beside theirs."""
    module = importlib.import_module(f"transformers.{file}")
    made = {}
    for name, kind in _FILES[file].items():
        theirs = getattr(module, name, None)
        if theirs is None:
            raise _changed(f"{module.__name__} has no class {name}")
        made[name] = type(name, (kind, theirs), {**kind.methods(theirs), "__module__": __name__})
        _try(theirs, made[name])
    return made


def _try(theirs: type, ours: Any) -> None:
    """Raise if a module of theirs computes something else, or is made in another way, than ours stands for."""
    name = f"{theirs.__module__}.{theirs.__name__}"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        try:
            module, inputs = ours.example(theirs)
            module = module.float().eval()
            expected = _first(module(*inputs))
            module.__class__ = ours
            got = _first(module(*inputs))
        except Exception as error:
            raise _changed(f"{name} is made or called in another way ({type(error).__name__}: {error})") from error
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-4, atol=1e-5):
            raise _changed(f"{name} computes something else")


def _changed(what: str) -> RuntimeError:
    version = importlib.import_module("transformers").__version__
    return RuntimeError(
        f"patch: transformers {version} is not the one that this fastllm knows: {what}. Update fastllm, or patch with "
        "only=, which leaves transformers' modules out where it names none of them"
    )


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _activate(linear: torch.nn.Module, activation: Any, x: Tensor) -> Tensor:
    if isinstance(activation, torch.nn.Module) and is_untouched(activation) and isinstance(activation, _Activation):
        return activate(linear, activation, activation.form, x)
    return activate(linear, activation, form_of(activation), x)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Do what transformers' apply_rotary_pos_emb does.

    Args:
        query: (B, H, T, D), or (B, T, H, D) with unsqueeze_dim=2.
        key: as query, with heads of its own.
        cos, sin: (B, T, D), or (1, T, D), whose halves along D are equal.
    """
    half = cos.size(-1) // 2
    tables = [table[..., :half].reshape(-1, half) for table in (cos, sin)]
    positions: int | Tensor = 0
    if cos.size(0) > 1:  # a sequence's rows stand behind those of the sequence before it
        positions = torch.arange(cos.size(0) * cos.size(1), device=cos.device).view(cos.shape[:2])
    layout = "bhtd" if unsqueeze_dim == 1 else "bthd"
    turned = (ops.rotary_embedding(x, *tables, layout=layout, positions=positions) for x in (query, key))
    return next(turned), next(turned)


def _with_global(function: Any, name: str, value: Any) -> Callable:
    """Return a function that finds `value` where it looks for a global name; those that decorate it stay around it."""
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        if name not in function.__code__.co_names:
            raise _changed(f"{function.__module__}.{function.__qualname__} does not call {name}")
        scope, cells = {**function.__globals__, name: value}, function.__closure__
    else:
        changed = _with_global(inner, name, value)
        scope = function.__globals__
        values = (cell.cell_contents for cell in function.__closure__ or ())
        cells = tuple(types.CellType(changed if value is inner else value) for value in values)
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copy, function)
    if inner is None:
        del copy.__wrapped__  # type: ignore[attr-defined]
    else:
        copy.__wrapped__ = changed  # type: ignore[attr-defined]
    return copy
