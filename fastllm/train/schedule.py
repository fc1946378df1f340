"""Learning-rate schedules. Each is a function of (step, settings) alone, so that a resumed run needs no state of it."""

import math
from collections.abc import Callable
from typing import Protocol


class Settings(Protocol):
    """What a schedule reads of a TrainConfig."""

    schedule: str
    learning_rate: float
    min_learning_rate: float | None
    warmup_steps: int
    max_steps: int
    decay_share: float


def learning_rate(settings: Settings, step: int) -> float:
    """Return the rate of a step, the first being 0."""
    return SCHEDULES[settings.schedule](settings, step)


def minimum(settings: Settings) -> float:
    """Return the rate that cosine and wsd end at; a tenth of the peak where none was set."""
    return settings.learning_rate / 10 if settings.min_learning_rate is None else settings.min_learning_rate


def _warmup(settings: Settings, step: int) -> float:
    """Linear, and past 0 at the first step: peak (step + 1) / (warmup_steps + 1)."""
    return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)


def cosine(settings: Settings, step: int) -> float:
    """Warm-up, then half a cosine from the peak to min_learning_rate at max_steps (Loshchilov & Hutter, 2017)."""
    if step < settings.warmup_steps:
        return _warmup(settings, step)
    progress = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return minimum(settings) + share * (settings.learning_rate - minimum(settings))


def wsd(settings: Settings, step: int) -> float:
    """Warm-up, the peak, then a line to min_learning_rate over the last decay_share of max_steps (MiniCPM, 2024)."""
    if step < settings.warmup_steps:
        return _warmup(settings, step)
    decay = max(1, round(settings.decay_share * settings.max_steps))
    left = min(1.0, max(0, settings.max_steps - step) / decay)
    return minimum(settings) + left * (settings.learning_rate - minimum(settings))


def noam(settings: Settings, step: int) -> float:
    """Warm-up, then 1/sqrt(step) ("Attention is all you need", 5.3), scaled so that learning_rate is the peak.

    The paper's d_model^-0.5 is in learning_rate: its base model's peak is (512 * 4000)^-0.5 = 7e-4.
    """
    warmup = max(1, settings.warmup_steps)
    return settings.learning_rate * min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)


def constant(settings: Settings, step: int) -> float:
    """Warm-up, then the peak."""
    return _warmup(settings, step) if step < settings.warmup_steps else settings.learning_rate


SCHEDULES: dict[str, Callable[[Settings, int], float]] = {
    "cosine": cosine,
    "wsd": wsd,
    "noam": noam,
    "constant": constant,
}
ENDING = ("cosine", "wsd")  # those that go by max_steps and min_learning_rate


def jump(before: Settings, after: Settings, step: int) -> tuple[float, float] | None:
    """Return a step's rate before and after settings were changed; None where it is the same."""
    rates = learning_rate(before, step), learning_rate(after, step)
    return None if math.isclose(*rates) else rates
