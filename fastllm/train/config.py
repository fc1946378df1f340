"""The settings of a training run. Knows nothing of torch, so that `fastllm train --help` is quick."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from fastllm.errors import UserError, UserValueError, did_you_mean
from fastllm.files import write_text
from fastllm.models.config import CONFIGS, DEFAULT, ModelConfig
from fastllm.train.schedule import SCHEDULES, learning_rate, minimum

CHOICES = {
    "schedule": tuple(SCHEDULES),
    "precision": ("float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "parallel": ("ddp", "fsdp"),
    "best_by": ("loss", "bleu", "chrf"),
}
# Settings that mean something to one task only.
OF_TASK = {
    "language": ("document_mask", "batch_size"),
    "translation": ("batch_tokens", "subword_sampling", "eval_translations"),
}
# What may differ when a run goes on: its length, and what changes how it is computed but not what.
RESUMABLE = (
    "max_steps", "data", "micro_batch_size", "device", "parallel", "activation_checkpointing", "compile", "threads",
    "patience", "sample_interval", "keep_checkpoints", "tensorboard",
)  # fmt: skip


@dataclass
class TrainConfig:
    """Settings of a run; the defaults suit a laptop's CPU (they are those of nanoGPT's CPU example).

    Options and config.yaml have the model's settings beside these, flat: see :meth:`of`.

    Args:
        data: the folder that `fastllm prepare` wrote.
        out: the run's folder, made new.
        init: start from these weights (a run's best, a model's folder, Hugging Face's too, a .gguf file or nanoGPT's
            ckpt.pt) and take the model's settings from them; dropout may be given too, a shorter
            context_length, and of a Llama the window, the rope settings and a context_length that they scale for.
        model: the architecture and its settings, but for vocab_size.
        vocab_size: token ids of the model; the default is as many as the tokenizer has. More are padding, for kernels
            that like multiples of 64.
        document_mask: attention stays within a document where several share a window; of language models.
        batch_size: sequences a step, over all processes; of language models.
        batch_tokens: tokens a step, over all processes; of translation models: source and target have at most so many
            each, padding among them.
        micro_batch_size: sequences a process takes at once, to save memory; the step and its result stay those of
            the whole batch, but for which values dropout zeroes. The default takes all.
        subword_sampling: of translation models: segmentations are drawn anew each time a sentence is seen, with this
            probability of leaving out a merge (bpe), or exponent of their probability (unigram; 0.2 is usual); 0 takes
            the best one.
        label_smoothing: share of each target's probability that training spreads over the vocabulary; losses that are
            evaluated are without.
        max_steps: optimizer steps.
        schedule: of the learning rate after warm-up: cosine, wsd (stable, then a linear decay), noam (inverse square
            root) or constant.
        learning_rate: the peak, reached after warmup_steps.
        min_learning_rate: where cosine and wsd end, at max_steps; the default is a tenth of learning_rate.
        warmup_steps: steps of linear warm-up.
        decay_share: wsd's decay, as a share of max_steps.
        weight_decay: AdamW's, on matrices only.
        beta1: AdamW's first decay.
        beta2: AdamW's second decay.
        grad_clip: the largest global gradient norm; 0 does not clip.
        ema_decay: of a moving average of the weights, evaluated beside them and saved as the checkpoint ema; 0 keeps
            none.
        precision: of matrix products: float32, bfloat16 or float16 (CUDA only, with loss scaling).
        device: cpu, cuda, or auto: cuda where it can be used.
        parallel: how processes under torchrun share the work: ddp (each has the whole model) or fsdp (each has a part).
        activation_checkpointing: keep each block's input only and compute the block again in backward.
        compile: use torch.compile on each block.
        eval_interval: steps between evaluations, each of which also writes a checkpoint.
        eval_batches: batches of each split an evaluation takes; 0 takes the whole validation split.
        eval_translations: of translation models: sentences of the validation split that each evaluation translates
            greedily, for BLEU and chrF beside the loss; at the end the whole split is, with a beam of 4. 0 does
            neither.
        best_by: by what the best checkpoint is chosen, and patience counts: loss, or of translation models bleu or
            chrf.
        patience: stop after so many evaluations that were not the best so far; 0 never does.
        sample_interval: steps between texts written to samples/ in the run's folder; 0 writes none.
        keep_checkpoints: keep the checkpoints of so many latest evaluations beside last and best.
        log_interval: steps between lines of metrics.jsonl.
        tensorboard: write metrics for TensorBoard too, into tensorboard/ in the run's folder.
        seed: of the weights, the order of data and dropout.
        threads: CPU threads; the default is torch's choice.
    """

    data: Path | None = None
    out: Path | None = None
    init: Path | None = None
    model: ModelConfig = field(default_factory=lambda: start(DEFAULT))
    vocab_size: int | None = None
    document_mask: bool = False
    batch_size: int = 12
    batch_tokens: int = 4096
    micro_batch_size: int | None = None
    subword_sampling: float = 0.0
    label_smoothing: float = 0.0
    max_steps: int = 2000
    schedule: str = "cosine"
    learning_rate: float = 1e-3
    min_learning_rate: float | None = None
    warmup_steps: int = 100
    decay_share: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema_decay: float = 0.0
    precision: str = "float32"
    device: str = "auto"
    parallel: str = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False
    eval_interval: int = 250
    eval_batches: int = 20
    eval_translations: int = 200
    best_by: str = "loss"
    patience: int = 0
    sample_interval: int = 0
    keep_checkpoints: int = 0
    log_interval: int = 10
    tensorboard: bool = False
    seed: int = 1337
    threads: int | None = None

    def check(self) -> None:
        """Raise UserValueError for the first value that cannot work."""
        for name in ("batch_size", "batch_tokens", "max_steps", "eval_interval", "log_interval"):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        for name in ("learning_rate", "weight_decay", "grad_clip", "warmup_steps", "seed",
                     "eval_batches", "eval_translations", "patience", "sample_interval", "keep_checkpoints",
                     "subword_sampling"):  # fmt: skip
            self._require(name, 0 <= getattr(self, name) < math.inf, "be at least 0")
        self._require("seed", self.seed < 2**63, "be below 2^63")
        self._require("threads", self.threads is None or self.threads <= 1024, "be at most 1024")
        for name in ("beta1", "beta2", "ema_decay", "label_smoothing"):
            self._require(name, 0 <= getattr(self, name) < 1, "be in [0, 1)")
        for name in ("vocab_size", "threads", "micro_batch_size"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "be at least 1")
        self._require("min_learning_rate", 0 <= minimum(self) < math.inf, "be at least 0")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            self._require(name, value in choices, f"be {' or '.join(choices)}", did_you_mean(str(value), choices))
        self._require(
            "precision", self.precision != "float16" or self.parallel != "fsdp",
            "be float32 or bfloat16 with fsdp (loss scaling does not support sharded gradients)",
        )  # fmt: skip
        translated = self.model.task == "translation" and self.eval_translations > 0
        self._require(
            "best_by", self.best_by == "loss" or translated,
            "be loss, unless a translation model's evaluations translate something (eval_translations)",
        )  # fmt: skip
        self._require("decay_share", 0 < self.decay_share <= 1, "be in (0, 1]")
        self._require(
            "min_learning_rate", minimum(self) <= self.learning_rate,
            f"be at most learning_rate ({self.learning_rate})",
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Return warnings about settings that work but are probably not what was meant; a sentence each."""
        if self.warmup_steps < self.max_steps:
            return []
        rate = learning_rate(self, self.max_steps - 1)
        return [
            f"warmup_steps ({self.warmup_steps}) must be less than max_steps ({self.max_steps}) for the full rate: the "
            f"learning rate reaches only {rate:.3g} of {self.learning_rate:.3g}"
        ]

    def sequences(self, context_length: int) -> float:
        """Return how many sequences of context_length tokens a step has."""
        return self.batch_size if self.model.task == "language" else self.batch_tokens / context_length

    def sequences_at_once(self, processes: int, context_length: int) -> float:
        """Return how many sequences of context_length tokens one of so many processes computes together."""
        own = self.sequences(context_length) / processes
        return min(self.micro_batch_size or own, own)

    def _require(self, name: str, condition: bool, expectation: str, hint: str = "") -> None:
        if not condition:
            raise UserValueError(f"train: '{name}' must {expectation}, got {getattr(self, name)}{hint}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that flat settings describe: options of the command line, or lines of config.yaml.

        Args:
            settings: by name, the model's among them; "model" is the architecture's name, by default gpt. What is
                missing has its default, of the model that of its default_preset.

        Raises:
            UserError: a name is not a setting, or is of another architecture; or a value cannot be.
        """
        kind = _known_kind("train", settings)
        own, model = dict(CONFIGS[kind].recipe), {}
        others = {name: task for task, names in OF_TASK.items() if task != CONFIGS[kind].task for name in names}
        for name, value in settings.items():
            if name in others:
                raise UserError(
                    f"train: '{name}' is a setting of {others[name]} models, and --model {kind} is none; leave it out"
                )
            if name in OWN:
                own[name] = value
            elif name in model_settings(kind):
                model[name] = value
            elif name != "model":
                raise UserError(f"train: '{name}' is not a setting{_of_others(name, kind)}")
        try:
            return cls(**own, model=start(kind, **model))
        except (TypeError, ValueError) as error:  # of a class that the user has not named
            raise UserValueError(f"train: {str(error).partition(': ')[2]}") from error

    def flat(self) -> dict[str, Any]:
        """Return the settings as :meth:`of` takes them."""
        settings: dict[str, Any] = {}
        idle = [name for task, names in OF_TASK.items() if task != self.model.task for name in names]
        for name, value in vars(self).items():
            if name in idle:
                continue
            if name == "model":
                model = asdict(value)
                settings |= {"model": value.kind, **{name: model[name] for name in model_settings(value.kind)}}
            else:
                settings[name] = value
        return settings

    def model_for(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelConfig:
        """Return the model's settings, with a tokenizer's number of tokens where vocab_size names none.

        Args:
            vocab_size: the tokenizer's.
            source_vocab_size: that of the source, where it has a vocabulary of its own.
        """
        sizes: dict[str, int] = {"vocab_size": self.vocab_size or vocab_size}
        if source_vocab_size is not None and getattr(self.model, "source_vocab_size", 0) is None:
            sizes["source_vocab_size"] = source_vocab_size
        return replace(self.model, **sizes)

    def save(self, path: Path) -> None:
        """Write the settings as YAML; paths become absolute, to hold wherever the file is read."""
        import yaml

        values = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in self.flat().items()}
        write_text(path, yaml.safe_dump(values, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read what save wrote.

        Raises:
            UserError: the file is missing or damaged, has a key that is none of the settings, or a value of a wrong
                type.
        """
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise UserError(f"{path} is damaged: expected lines like 'n_layer: 4'")
            types = {"model": str, **OWN, **model_settings(_known_kind(path, values))}
            for name, value in values.items():
                if name not in types:
                    raise UserError(f"{path}: '{name}' is not a setting{did_you_mean(name, types)}")
                kind = types[name]
                if not _is_of(kind, value):
                    expected = kind.__name__ if isinstance(kind, type) else kind
                    raise UserError(f"{path}: '{name}' must be of type {expected}, got {value!r}")
            config = cls.of(values)
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): is {path.parent} a run?") from error
        config.data = Path(config.data) if config.data else None
        config.init = Path(config.init) if config.init else None
        config.out = path.parent
        return config


def start(kind: str, **given: Any) -> ModelConfig:
    """Return the settings of an architecture that a new run has, but for what is given."""
    return CONFIGS[kind].preset(CONFIGS[kind].default_preset, **given)


OWN = {one.name: one.type for one in fields(TrainConfig) if one.name != "model"}


def _known_kind(where: object, settings: Mapping[str, Any]) -> str:
    """Return the architecture that settings name; raise UserError if there is none of that name."""
    kind = settings.get("model", DEFAULT)
    if not isinstance(kind, str) or kind not in CONFIGS:
        hint = did_you_mean(f"{kind}", CONFIGS)
        raise UserError(f"{where}: 'model' must be one of {', '.join(CONFIGS)}, got {kind}{hint}")
    return kind


def model_settings(kind: str) -> dict[str, Any]:
    """Return the names and types of an architecture's settings; vocab_size is a run's, which takes the tokenizer's."""
    return {one.name: one.type for one in fields(CONFIGS[kind]) if one.name not in OWN}


def _of_others(name: str, kind: str) -> str:
    """Return which architecture has a setting, or else the nearest name that is known."""
    others = [other for other in CONFIGS if name in model_settings(other)]
    if others:
        return f" of --model {kind}: it is one of --model {' and '.join(others)}"
    return did_you_mean(name, [*OWN, *model_settings(kind)])


def _is_of(kind: Any, value: object) -> bool:
    """Return whether a value from YAML is of a setting's type: paths are strings there, and 1 may mean 1.0."""
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, str):
        return kind in (str, Path | None)
    return isinstance(value, kind | int if float in (kind, *get_args(kind)) else kind)
