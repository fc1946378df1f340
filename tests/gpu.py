"""The `gpu` fixture: one test body for torch's CUDA devices, and for devices of the emulator that stand in for them.

Both give tensors whose device is "cuda:0" or "cuda:1". Those of the emulator take torch's place (see
tests/cuda_emulator/README.md) where torch was built without CUDA.
"""

import itertools
from contextlib import contextmanager

import pytest
import torch

from fastllm import ops
from tests.cuda_emulator import load
from tests.devices import CUDA, EMULATED


class Torch:
    """torch's own CUDA devices."""

    def __init__(self):
        self.count = torch.cuda.device_count()

    @contextmanager
    def other_stream(self, device=0):
        """Make another stream current on a device, and wait for it at the end."""
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    @contextmanager
    def captured(self, device=0):
        """Give a graph of what is asked of the device here; its replay() does it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph):
            yield graph

    @contextmanager
    def without_waiting(self):
        """Have everything for which the host would wait fail."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def compile(self, function):
        """Compile to CUDA graphs."""
        compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")

        def call(*args, **kwargs):
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*args, **kwargs)

        return call

    def serve(self, patch):
        """They serve the command line as they are."""


class Emulated:
    """The emulator's."""

    def __init__(self, module):
        self.module, self.count = module, module.device_count
        self._streams = itertools.count(1)

    @contextmanager
    def other_stream(self, device=0):
        before = self.module.exchange_stream(device, next(self._streams))
        try:
            yield
        finally:
            self.module.exchange_stream(device, before)

    @contextmanager
    def captured(self, device=0):
        graph = self.module.Graph()
        with self.other_stream(device):
            graph.begin()
            try:
                yield graph
            finally:
                graph.end()

    @contextmanager
    def without_waiting(self):
        self.module.forbid_waiting(True)
        try:
            yield
        finally:
            self.module.forbid_waiting(False)

    def compile(self, function):
        """Trace to graphs of operators as mode="reduce-overhead" does, and run these as captured graphs."""
        from torch._dynamo.backends.common import aot_autograd

        return torch.compile(function, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=self._graphed))

    def serve(self, patch):
        """Have torch.cuda and fastllm say that there is a GPU which can do all, so that commands take it."""
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "set_device", lambda device: self.module.set_device(device.index))
        patch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())  # torch draws from the CPU's
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(ops, "report", list)
        patch.setattr("fastllm.train.stepper.build_info", lambda: {"cuda": "yes"})

    def _graphed(self, traced, examples):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.cudagraphs import check_for_skip

        obstacle = check_for_skip(traced, 0)
        assert obstacle is None, obstacle
        recorded = []

        def call(*args):
            if not recorded:
                inputs = [torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device) for x in args]
                with self.captured() as graph:
                    recorded.extend((graph, inputs, traced(*inputs)))
            graph, inputs, outputs = recorded
            for to, source in zip(inputs, args, strict=True):
                to.copy_(source)
            graph.replay()
            return [x.clone() if isinstance(x, torch.Tensor) else x for x in outputs]

        return make_boxed_func(call)


@contextmanager
def emulated_devices(module):
    """Give torch the CUDA devices of a module of the emulator."""
    if torch.backends.cuda.is_built():
        pytest.skip("this build of torch has CUDA devices of its own")
    with pytest.MonkeyPatch.context() as patch, torch.autograd.set_multithreading_enabled(False):
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        module.connect()
        try:
            yield Emulated(module)
        finally:
            module.disconnect()


@pytest.fixture(params=[pytest.param(EMULATED, marks=pytest.mark.emulated), pytest.param(CUDA, marks=pytest.mark.cuda)])
def gpu(request):
    """Give what stands for torch.cuda here."""
    if request.param == EMULATED:
        with emulated_devices(load("emulated")) as devices:
            yield devices
        return
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    yield Torch()


@pytest.fixture
def emulated():
    """Give the emulator's devices alone, for what no GPU shows."""
    with emulated_devices(load("emulated")) as devices:
        yield devices
