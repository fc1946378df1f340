"""Training a model on a data folder; a run is a folder with everything in it."""

from fastllm.train.config import TrainConfig

__all__ = ["TrainConfig"]
