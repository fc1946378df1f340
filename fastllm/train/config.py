"""What a training run is told. Knows nothing of torch, so that `fastllm train --help` is quick."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fastllm.errors import UserError
from fastllm.files import write_text


@dataclass
class TrainConfig:
    """Settings of a run; the defaults suit a laptop's CPU (they are those of nanoGPT's CPU example).

    Args:
        data: the folder that `fastllm prepare` wrote.
        out: the run's folder, made new.
        n_layer: blocks.
        n_head: attention heads a block; must divide n_embd.
        n_embd: channels.
        context_length: tokens the model sees at once.
        dropout: probability of a value to be zeroed while training, in [0, 1).
        bias: whether linear and norm layers have biases.
        batch_size: sequences a step.
        max_steps: optimizer steps.
        learning_rate: the peak, reached after warmup_steps.
        min_learning_rate: where the cosine ends, at max_steps.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's, on matrices only.
        beta1: AdamW's first decay.
        beta2: AdamW's second decay.
        grad_clip: the largest global gradient norm; 0 does not clip.
        eval_interval: steps between evaluations, each of which also writes a checkpoint.
        eval_batches: batches of each split an evaluation takes.
        log_interval: steps between lines of metrics.jsonl.
        seed: of the weights, the order of data and dropout.
        threads: CPU threads; the default is torch's choice.
    """

    data: Path | None = None
    out: Path | None = None
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    context_length: int = 64
    dropout: float = 0.0
    bias: bool = False
    batch_size: int = 12
    max_steps: int = 2000
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0
    eval_interval: int = 250
    eval_batches: int = 20
    log_interval: int = 10
    seed: int = 1337
    threads: int | None = None

    def check(self) -> None:
        """Raise UserError for the first value that cannot work."""
        for name in ("n_layer", "n_head", "n_embd", "context_length", "batch_size", "max_steps",
                     "eval_interval", "eval_batches", "log_interval"):  # fmt: skip
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        for name in ("learning_rate", "min_learning_rate", "weight_decay", "grad_clip", "warmup_steps", "seed"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "be at least 0")
        for name in ("dropout", "beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "be in [0, 1)")
        self._require("n_embd", self.n_embd % self.n_head == 0, f"be a multiple of n_head ({self.n_head})")
        self._require("threads", self.threads is None or self.threads >= 1, "be at least 1")
        self._require(
            "min_learning_rate", self.min_learning_rate <= self.learning_rate,
            f"be at most learning_rate ({self.learning_rate})",
        )  # fmt: skip

    def _require(self, name: str, condition: bool, expectation: str) -> None:
        if not condition:
            raise UserError(f"train: '{name}' must {expectation}, got {getattr(self, name)}")

    def learning_rate_at(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, then a cosine from the peak to the minimum."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.min_learning_rate + cosine * (self.learning_rate - self.min_learning_rate)

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        import yaml

        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        write_text(path, yaml.safe_dump(values, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read what save wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            config = cls(**values)
        except (OSError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): is {path.parent} a run?") from error
        config.data = Path(config.data) if config.data else None
        config.out = path.parent
        return config

    def changed_from_defaults(self) -> list[str]:
        """Return the names of the settings that are not at their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]
