"""AdamW as one pass over all parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastllm import _extension  # noqa: F401  (registers torch.ops.fastllm.*)


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what torch._disable_dynamo wraps: its wrapper imports torch._dynamo, over a second, at the first call."""
    return getattr(method, "__wrapped__", method)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor (a DTensor, as FSDP's parameters are) that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, 2019) with the semantics and state_dict of torch.optim.AdamW, and clipping built in.

    All tensors are updated in one parallel pass, and gradients are clipped on the way instead of being rewritten.

    Args:
        params: parameters or parameter groups; float32 or float64 on the CPU, contiguous. Of FSDP's sharded ones each
            process updates its part, and the norm to clip is that of all parts.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, as a multiple of lr.
        maximize: go up instead of down.
        max_grad_norm: gradients of all groups together are scaled to at most this norm, as
            torch.nn.utils.clip_grad_norm_ does; None does not clip.

    After a step with max_grad_norm, last_grad_norm is the norm before clipping.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a parameter is not on the CPU (use torch.optim.AdamW(fused=True) there) or its gradient is sparse.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"AdamW: '{name}' must be at least 0, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"AdamW: 'betas' must be in [0, 1), got {betas}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"AdamW: 'max_grad_norm' must be over 0 or None, got {max_grad_norm}")
        # The keys torch.optim.AdamW stores, so that state_dicts go both ways.
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": False, "maximize": maximize,
            "foreach": None, "capturable": False, "differentiable": False, "fused": None,
            "decoupled_weight_decay": True,
        }  # fmt: skip
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm
        self.last_grad_norm: float | None = None

    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)
    state_dict = _plain(torch.optim.Optimizer.state_dict)
    load_state_dict = _plain(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        gradients = [[self._gradient(p) for p in parameters] for parameters in groups]
        scale = 1.0
        if self.max_grad_norm is not None:
            norm = self._norm([p for group in groups for p in group], [g for group in gradients for g in group])
            self.last_grad_norm = norm
            # Written so that a NaN norm reaches the parameters, as it does with clip_grad_norm_.
            scale = 1.0 if norm + 1e-6 <= self.max_grad_norm else self.max_grad_norm / (norm + 1e-6)
        for group, parameters, own_gradients in zip(self.param_groups, groups, gradients, strict=True):
            self._update(group, parameters, own_gradients, scale)
        return loss

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        if parameter.device.type != "cpu":
            raise TypeError(
                f"AdamW: 'params' must be on the CPU, got {parameter.device}: use torch.optim.AdamW(fused=True) there"
            )
        if gradient.is_sparse:
            raise TypeError("AdamW: gradients must be dense, got a sparse one")
        return local(gradient).contiguous()

    @staticmethod
    def _norm(parameters: list[Tensor], gradients: list[Tensor]) -> float:
        """Return the norm of all gradients; of sharded parameters, over the processes that share them."""
        parts: dict[Any, list[Tensor]] = {}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parts.setdefault(getattr(parameter, "device_mesh", None), []).append(gradient)
        norms = {mesh: torch.ops.fastllm.grad_norm.default(part) for mesh, part in parts.items()}
        if set(norms) <= {None}:
            return norms.get(None, 0.0)
        squares = norms.pop(None, 0.0) ** 2
        for mesh, norm in norms.items():
            square = torch.tensor(norm**2, dtype=torch.float64)
            torch.distributed.all_reduce(square, group=mesh.get_group())
            squares += square.item()
        return squares**0.5

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], scale: float) -> None:
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        torch.ops.fastllm.adamw_.default(
            [local(p) for p in parameters], gradients,
            *([local(s[key]) for s in states] for key in ("exp_avg", "exp_avg_sq", "step")),
            group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["maximize"], scale,
        )  # fmt: skip
