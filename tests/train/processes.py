"""Children that start in a moment: forked from a server that has torch and fastllm loaded and has computed nothing."""

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "fastllm.cli",
        "fastllm.train.trainer",
        "torch.distributed.fsdp",
        "rich.progress",
        "matplotlib.figure",
    ]
)


def _child(arguments, environment, output):
    from fastllm import cli

    os.environ |= environment
    file = open(output, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = file
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    try:
        status = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    file.flush()
    os._exit(status)


def start_server():
    """Wait until the server has loaded everything, so that children's times are their own."""
    process = CONTEXT.Process(target=int)
    process.start()
    process.join()


class Child:
    """A command line in a process of its own.

    Args:
        arguments: what follows `fastllm`.
        environment: variables to set.
    """

    def __init__(self, arguments, environment=None):
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        self._output = Path(name)
        self.process = CONTEXT.Process(target=_child, args=(arguments, environment or {}, name), daemon=True)
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        return self._output.read_text()

    def wait(self, seconds=120):
        """Return the exit status; negative for a signal."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError(self.output())
        return self.process.exitcode


def together(arguments, world_size):
    """Start a command line in several processes, as torchrun does; return them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": str(world_size)}  # fmt: skip
    return [
        Child(arguments, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world_size)
    ]  # fmt: skip


def run_together(arguments, world_size, status=0):
    """Run a command line in several processes to their end."""
    children = together(arguments, world_size)
    statuses = [child.wait() for child in children]
    assert statuses == [status] * world_size, [child.output() for child in children]
    return children
