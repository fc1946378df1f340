"""What a mutant is."""

from dataclasses import dataclass


@dataclass
class Mutant:
    """One fault: in `file`, `right` (which occurs once) becomes `wrong`; `tests` must notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str

    @property
    def on_cuda(self) -> bool:
        """Whether the fault is in what runs on CUDA alone: its tests run in the emulator, which compiles it itself."""
        return self.file.startswith(("csrc/cuda/", "csrc/ops/cuda/"))
