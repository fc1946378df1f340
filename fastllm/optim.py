"""AdamW as one pass over all parameters."""

from collections.abc import Callable, Iterable, Mapping
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


# Settings of torch's groups that have one value here. foreach, fused and capturable, which choose among torch's
# implementations and change no result, may have any.
_FIXED = {"amsgrad": False, "differentiable": False, "decoupled_weight_decay": True}
_MOMENTS = ("exp_avg", "exp_avg_sq")


def _check_fixed(group: Mapping[str, Any]) -> None:
    """Refuse what a group asks for and would not get."""
    for name, value in _FIXED.items():
        if bool(group.get(name, value)) is not value:
            raise ValueError(f"AdamW: '{name}' must be {value}, got {group[name]}: use torch.optim's")
    if "max_grad_norm" in group:
        raise ValueError(
            "AdamW: 'max_grad_norm' must be given to the optimizer, for it clips all groups together, "
            f"got {group['max_grad_norm']} in a group"
        )


def _check_group(group: Mapping[str, Any]) -> None:
    """Check all settings of a group."""
    for name in ("lr", "betas", "eps", "weight_decay"):
        if name not in group:
            raise ValueError(f"AdamW: a group must have '{name}', got {', '.join(group)}")
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"AdamW: '{name}' must be at least 0, got {group[name]}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"AdamW: 'betas' must be in [0, 1), got {group['betas']}")
    _check_fixed(group)


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, 2019) with the semantics and state_dict of torch.optim.AdamW, and clipping built in.

    All tensors are updated in one parallel pass, and gradients are clipped on the way instead of being rewritten.

    Args:
        params: parameters or parameter groups; float32 or float64 on the CPU, float32 on CUDA, contiguous. Of FSDP's
            sharded ones each process updates its part, and the norm to clip is that of all parts.
        lr: learning rate; a scalar tensor where a captured CUDA graph is to see it change.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, as a multiple of lr.
        amsgrad, differentiable: False.
        maximize: go up instead of down.
        foreach, capturable, fused: anything: they choose among torch's implementations. This one is fused and fit for
            capture.
        max_grad_norm: gradients of all groups together are scaled to at most this norm, as
            torch.nn.utils.clip_grad_norm_ does; None does not clip.

    After a step with max_grad_norm, grad_norm is the norm before clipping, a scalar tensor where the parameters are,
    and last_grad_norm the same as a number. On CUDA norm, clipping and step counts stay on the device, so that a step
    need not wait for it and is fit for capture in a CUDA graph. Reading last_grad_norm waits.

    Raises:
        ValueError: a setting is out of range or is not done here, in a group or in a state_dict too.
        TypeError: a parameter has another dtype or is on another kind of device, or its gradient is sparse.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"AdamW: 'max_grad_norm' must be positive or None, got {max_grad_norm}")
        # The keys torch.optim.AdamW stores, so that state_dicts go both ways.
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "foreach": foreach, "capturable": capturable, "differentiable": differentiable,
            "fused": fused, "decoupled_weight_decay": True,
        }  # fmt: skip
        _check_group(defaults)
        super().__init__(params, defaults)
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None

    _add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)
    state_dict = _plain(torch.optim.Optimizer.state_dict)
    _load_state_dict = _plain(torch.optim.Optimizer.load_state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; what it does not set is as in the constructor."""
        _check_group({**self.defaults, **param_group})
        self._add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict of this class or of torch.optim.AdamW.

        Raises:
            ValueError: it is of another optimizer, or of settings that are not done here; nothing is taken over then.
        """
        for group in state_dict["param_groups"]:
            _check_group(group)
        for state in state_dict["state"].values():
            if state and not {"step", *_MOMENTS} <= state.keys():
                raise ValueError(f"AdamW: the state must hold step, exp_avg and exp_avg_sq, got {', '.join(state)}")
        self._load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy and pickle keep."""
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "grad_norm": self.grad_norm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled state, or what load_state_dict has made of its own."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():  # what older versions of torch did not have yet
                group.setdefault(name, value)
        for parameter, moments in self.state.items():
            if "step" in moments:  # torch keeps it on the CPU unless the group is fused or capturable
                step = moments["step"]
                moments["step"] = torch.as_tensor(
                    step if isinstance(step, Tensor) else float(step), device=parameter.device
                )

    @property
    def last_grad_norm(self) -> float | None:
        """The norm of all gradients at the last step, before clipping; None without max_grad_norm."""
        return None if self.grad_norm is None else self.grad_norm.item()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:  # anyone's to change since they were checked
            _check_fixed(group)
        groups = [
            [(p, self._gradient(p)) for p in group["params"] if p.grad is not None] for group in self.param_groups
        ]
        if self.max_grad_norm is not None:
            self.grad_norm = self._norm([pair for pairs in groups for pair in pairs])
        for group, pairs in zip(self.param_groups, groups, strict=True):
            for device in dict.fromkeys(p.device for p, _ in pairs):
                self._update(group, [(p, g) for p, g in pairs if p.device == device], device)
        return loss

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        if parameter.device.type not in ("cpu", "cuda"):
            raise TypeError(f"AdamW: 'params' must be on the CPU or on CUDA, got {parameter.device}")
        if gradient.is_sparse:
            raise TypeError("AdamW: gradients must be dense, got a sparse one")
        return local(gradient).contiguous()

    @staticmethod
    def _norm(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the norm of all gradients; of sharded parameters, over the processes that share them."""
        parts: dict[Any, list[Tensor]] = {}
        for parameter, gradient in pairs:
            parts.setdefault((getattr(parameter, "device_mesh", None), parameter.device), []).append(gradient)
        norms = {part: torch.ops.fastllm.grad_norm.default(tensors) for part, tensors in parts.items()}
        if len(norms) == 1 and next(iter(norms))[0] is None:
            return next(iter(norms.values()))
        squares = []
        for (mesh, _), norm in norms.items():
            squares.append(norm.square())
            if mesh is not None:
                torch.distributed.all_reduce(squares[-1], group=mesh.get_group())
        if not squares:
            return torch.zeros((), dtype=torch.float64)
        return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()

    def _update(self, group: dict[str, Any], pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
        states = [self.state[p] for p, _ in pairs]
        for (parameter, _), state in zip(pairs, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        lr = group["lr"]
        rate, tensor = (0.0, lr.to(device)) if isinstance(lr, Tensor) else (lr, None)
        norm = None if self.max_grad_norm is None or self.grad_norm is None else self.grad_norm.to(device)
        torch.ops.fastllm.adamw_.default(
            [local(p) for p, _ in pairs], [gradient for _, gradient in pairs],
            *([local(s[key]) for s in states] for key in (*_MOMENTS, "step")),
            rate, tensor, *group["betas"], group["eps"], group["weight_decay"], group["maximize"],
            norm, self.max_grad_norm or 0.0,
        )  # fmt: skip
