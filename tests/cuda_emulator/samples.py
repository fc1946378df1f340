"""Runs the kernels of tests/cuda_emulator/kernels on torch's CPU tensors."""

import torch

from tests.cuda_emulator import load
from tests.cuda_emulator.traffic import Traffic


def launch(kernel, blocks=1, threads=64, shared_bytes=0, seed=0, **arguments):
    """Run SAMPLE(kernel) and return the launch's error by name.

    Args:
        kernel: as in its SAMPLE(...).
        blocks, threads: a number or up to three.
        shared_bytes: of dynamic shared memory.
        seed: of the order in which threads and blocks run.
        arguments: the kernel's, in its order: numbers, and contiguous tensors, which are the launch's buffers.
    """

    def three(size):
        size = [size] if isinstance(size, int) else list(size)
        return size + [1] * (3 - len(size))

    def convert(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        assert value.is_contiguous()
        return value.data_ptr(), value.numel() * value.element_size(), f"'{name}'"

    samples = load("samples")
    samples.seed(seed)
    samples.reset()
    values = [convert(name, value) for name, value in arguments.items()]
    return samples.launch(kernel, three(blocks), three(threads), shared_bytes, values)


def run(kernel, **how):
    """Run SAMPLE(kernel), which must launch; return its memory traffic."""
    assert launch(kernel, **how) == "cudaSuccess"
    return Traffic(load("samples").instructions())
