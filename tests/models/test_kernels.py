"""A model names the ops that it calls: by them a device is chosen, so none may be missing."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastllm.generation import generate
from tests.generation.models import small_model
from tests.models.kinds import EVERY_KIND


class Watched(TorchDispatchMode):
    """Collects the names of fastllm's ops; backward ops belong to those of forward."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        namespace, name = op._schema.name.split("::")
        if namespace == "fastllm" and not name.endswith("_backward"):
            self.names.add(name)
        return op(*args, **(kwargs or {}))


@EVERY_KIND
def test_a_model_names_the_ops_that_it_calls(kind):
    model, tokens = small_model(kind, dropout=0.1).train(), torch.randint(23, (2, 9))
    with Watched() as watched:
        model.loss(tokens, tokens).backward()
        model.eval()
        model.loss(tokens, tokens)
        list(generate(model, [1, 2, 3], 3))
    assert len(watched.names) > 5
    assert watched.names <= set(model.kernels), watched.names - set(model.kernels)
