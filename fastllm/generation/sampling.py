"""From a model's logits to the next token: penalties, filters and the draw."""

import math
from collections.abc import Set
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from fastllm.errors import UserError, UserValueError

# V vocabulary

_KINDS = {Integral: "whole number", Real: "number"}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The settings apply in this order; None leaves one out.

    Args:
        repetition_penalty: positive logits of tokens that stand in the prompt or were generated are divided by it,
            negative ones multiplied (Keskar et al., "CTRL", 2019); 1 changes nothing.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among exactly the k likeliest tokens; as many as there are change nothing.
        top_p: of these, among the fewest likeliest ones that together have this probability (Holtzman et al., "The
            curious case of neural text degeneration", 2019); 1 changes nothing.
        min_p: of these, among those with at least this share of the likeliest one's probability.

    Raises:
        UserError: one is out of its range.
        TypeError: one is not a number, or top_k not a whole one.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            kind = Integral if name == "top_k" else Real
            if not (isinstance(value, kind) or (value is None and name in ("top_k", "top_p", "min_p"))):
                raise TypeError(f"generate: '{name}' must be a {_KINDS[kind]}, got {value!r}")
        _check("temperature", self.temperature, "at least 0 and finite", 0 <= self.temperature < math.inf)
        if self.top_k is not None:
            _check("top_k", self.top_k, "at least 1", self.top_k >= 1)
        if self.top_p is not None:
            _check("top_p", self.top_p, "in (0, 1]", 0 < self.top_p <= 1)
        if self.min_p is not None:
            _check("min_p", self.min_p, "in [0, 1]", 0 <= self.min_p <= 1)
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, "positive and finite", 0 < penalty < math.inf)

    def draw(self, logits: Tensor, generator: torch.Generator, seen: Set[int] = frozenset()) -> tuple[int, float]:
        """Draw a token from logits (V,), on the CPU; one random number is taken unless the choice is certain.

        Args:
            logits: of every token.
            generator: gives the random number.
            seen: the tokens that repetition_penalty is for.

        Returns:
            The token, and its log-probability in nats as the model gave it: before penalty, temperature and filters.

        Raises:
            UserError: the logits have NaN or +inf, or none is finite.
        """
        logits = logits.double()
        if not math.isfinite(logits.max()):
            raise UserError("generate: the model's logits are not finite: its weights are damaged or diverged")
        token = self._choose(self._penalised(logits, seen), generator)
        return token, float(logits[token] - logits.logsumexp(0))

    def _penalised(self, logits: Tensor, seen: Set[int]) -> Tensor:
        if self.repetition_penalty == 1:
            return logits
        # A prompt may hold tokens that are not to be drawn, past the logits' end.
        ids = torch.tensor(sorted(token for token in seen if token < logits.numel()), dtype=torch.int64)
        values = logits[ids]
        penalty = torch.tensor(self.repetition_penalty, dtype=values.dtype)  # where() would round it to float32
        penalised = torch.where(values > 0, values / penalty, values * penalty)
        largest = torch.finfo(values.dtype).max
        return logits.index_copy(0, ids, penalised.clamp(-largest, largest))

    def _choose(self, logits: Tensor, generator: torch.Generator) -> int:
        if self.temperature == 0 or self.top_k == 1:
            return int(logits.argmax())
        probabilities, ids = self.distribution(logits)
        total = probabilities.cumsum(0)
        # The first token whose cumulated probability is over a number below the sum of all (a double under 1 times the
        # sum never rounds up to it): one with probability 0 never is.
        number = float(torch.rand((), dtype=torch.float64, generator=generator)) * float(total[-1])
        return int(ids[int(torch.searchsorted(total, number, right=True))])

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is drawn from: probabilities, which need not sum to 1, and the tokens they are of."""
        count = min(self.top_k or logits.numel(), logits.numel())
        if count == logits.numel() and self.top_p in (None, 1):
            values, ids = logits, torch.arange(count)
        else:
            values, ids = logits.topk(count)  # falling; exactly k
        probabilities = torch.softmax((values - values.max()) / self.temperature, 0)
        if self.top_p not in (None, 1):
            before = probabilities.cumsum(0) - probabilities  # what the likelier tokens have together
            count = max(1, int((before < self.top_p).sum()))
            probabilities, ids = probabilities[:count], ids[:count]
        if self.min_p is not None:
            probabilities = probabilities * (probabilities >= self.min_p * probabilities.max())
        return probabilities, ids


def _check(name: str, value: float, expectation: str, right: bool) -> None:
    if not right:
        raise UserValueError(f"generate: '{name}' must be {expectation}, got {value}")
