"""Small random models, whose tokens are far from equally likely, and what a model without a cache makes of a text."""

import torch

from fastllm.models import model_class
from tests.models.kinds import KINDS


def small_model(kind, vocabulary=23, context=16, seed=0, **options):
    torch.manual_seed(seed)
    config = KINDS[kind](vocabulary, context, **options)
    model = model_class(config)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def small_gpt(*sizes, **options):
    return small_model("gpt", *sizes, **options)


class Uncached:
    """One sequence under the rule for long ones, computed anew each step."""

    def __init__(self, model, prompt):
        self.model, self.longest = model, model.context_length
        self.visible = prompt[-self.longest :]

    def push(self, token):
        if len(self.visible) == self.longest:
            self.visible = self.visible[self.longest - self.longest // 2 :]
        self.visible = [*self.visible, token]

    def logits(self):
        with torch.no_grad():
            return self.model(torch.tensor([self.visible], device=self.model.norm.weight.device))[0, -1]
