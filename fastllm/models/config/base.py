"""What every architecture's settings have in common."""

from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, ClassVar, TypeVar

from fastllm.errors import check_type, did_you_mean
from fastllm.models.config.cost import Cost

Config = TypeVar("Config", bound="ModelConfig")


@dataclass
class ModelConfig:
    """What every architecture's settings have; subclasses add theirs and give `kind`, `presets` and `cost`.

    Attributes:
        kind: the architecture's name, by which files and options call it.
        presets: named settings.
        default_preset: which of them `fastllm train` starts from.
        recipe: settings of `fastllm train` whose defaults are others for such models.
        task: what such a model learns, by the name that train/task.py knows.
    """

    kind: ClassVar[str]
    task: ClassVar[str] = "language"
    default_preset: ClassVar[str] = "shakespeare"
    recipe: ClassVar[dict[str, Any]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]]

    vocab_size: int
    context_length: int

    @classmethod
    def preset(cls: type[Config], name: str, **overrides: Any) -> Config:
        """Return the settings of that name, with changes.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in cls.presets:
            hint = did_you_mean(name, cls.presets)
            raise ValueError(f"{cls.__name__}: 'preset' must be one of {', '.join(cls.presets)}, got '{name}'{hint}")
        return cls(**{**cls.presets[name], **overrides})

    @classmethod
    def from_dict(cls: type[Config], settings: dict[str, Any]) -> Config:
        """Return the configuration that asdict made settings of.

        Raises:
            ValueError: a setting is unknown, or has a value that it cannot have.
            TypeError: a value is of a wrong type.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in settings if name not in known]:
            hint = did_you_mean(unknown[0], known)
            raise ValueError(f"{cls.__name__}: '{unknown[0]}' is not a setting{hint}; there are {', '.join(known)}")
        return cls(**settings)

    @property
    def source_vocabulary(self) -> int:
        """Token ids of the source, of an encoder-decoder."""
        raise NotImplementedError

    def cost(self) -> Cost:
        """Return what the model costs."""
        raise NotImplementedError

    def may_become(self, name: str, value: Any) -> bool:
        """Return whether trained weights still fit where this setting gets another value."""
        return name == "dropout" or (name == "context_length" and value < self.context_length)

    def adapted(self: Config, **changes: Any) -> Config:
        """Return the settings of trained weights with changes that may_become allows.

        Raises:
            ValueError: the settings do not go together, or the weights were not trained for them.
        """
        return replace(self, **changes)

    def _check_sizes(self, *names: str) -> None:
        """Raise unless these are whole numbers of at least 1."""
        for name in names:
            check_type(type(self).__name__, name, getattr(self, name), Integral)
            self._require(name, getattr(self, name) >= 1, "be at least 1")

    def _check_types(self, **kinds: type) -> None:
        for name, kind in kinds.items():
            check_type(type(self).__name__, name, getattr(self, name), kind)

    def _require(self, name: str, condition: bool, expectation: str) -> None:
        if not condition:
            value = getattr(self, name)
            shown = f"'{value}'" if isinstance(value, str) else value
            raise ValueError(f"{type(self).__name__}: '{name}' must {expectation}, got {shown}")
