"""What kernels took of memory, as a profiler would tell it: by kernel and line of source."""

from collections import defaultdict
from dataclasses import dataclass

from tests.cuda_emulator import load


@dataclass
class Line:
    """All instructions of one kind at one line.

    A request is one instruction of one warp. Of global memory it takes 32-byte sectors; of shared memory it takes
    passes, each of one 4-byte word from each of the 32 banks.
    """

    kernel: str
    source: str  # "vector.h:34 in gelu.cu:52": the call chain, innermost first
    space: str  # "global" or "shared"
    writes: bool
    bytes: int  # a lane
    requests: int = 0
    lanes: int = 0
    sectors: int = 0
    passes: int = 0
    fewest_passes: int = 0

    @property
    def sectors_per_request(self):
        return self.sectors / self.requests

    @property
    def efficiency(self):
        """The share of the sectors' bytes that lanes asked for; over 1 where lanes share bytes."""
        return self.lanes * self.bytes / (32 * self.sectors)

    @property
    def bank_conflicts(self):
        """Passes beyond those that the width of the accesses needs."""
        return self.passes - self.fewest_passes


class Traffic:
    """The lines of what a module's instructions() gave."""

    def __init__(self, instructions):
        lines = {}
        for row in instructions:
            key = tuple(row[name] for name in ("kernel", "source", "space", "writes", "bytes"))
            line = lines.setdefault(key, Line(*key))
            for name in ("requests", "lanes", "sectors", "passes", "fewest_passes"):
                setattr(line, name, getattr(line, name) + row[name])
        self.lines = list(lines.values())

    def find(self, space, writes, kernel=""):
        """Return the lines that load from (or, `writes`, store to) global or shared memory in kernels of that name."""
        return [each for each in self.lines if each.space == space and each.writes == writes and kernel in each.kernel]

    def total(self, space, writes, kernel=""):
        """Return their sums as one line."""
        sums = defaultdict(int)
        found = self.find(space, writes, kernel)
        for line in found:
            for name in ("requests", "lanes", "sectors", "passes", "fewest_passes"):
                sums[name] += getattr(line, name)
        widths = {line.bytes for line in found}
        return Line(kernel, "", space, writes, widths.pop() if len(widths) == 1 else 0, **sums)

    def __str__(self):
        return "\n".join(
            f"{each.kernel}: {'store to' if each.writes else 'load from'} {each.space}, {each.bytes} bytes a lane, "
            f"{each.requests} requests of {each.lanes / each.requests:.1f} lanes, "
            + (f"{each.sectors_per_request:.2f} sectors each" if each.space == "global" else
               f"{each.bank_conflicts} bank conflicts in {each.passes} passes")
            + f" ({each.source})"
            for each in self.lines
        )  # fmt: skip


def traffic_of(call):
    """Return the traffic of the ops that call() runs on CPU tensors, on the emulator."""
    emulated = load("emulated")
    emulated.reset()
    emulated.install()
    try:
        call()
    finally:
        emulated.uninstall()
    return Traffic(emulated.instructions())
