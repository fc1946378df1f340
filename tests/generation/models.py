"""Small random models for the tests of generation, whose tokens are far from equally likely."""

import torch

from fastllm.models import GPT, GPTConfig


def small_gpt(vocabulary=23, context=16, seed=0, **options):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocabulary, context, n_layer=2, n_head=2, n_embd=16, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model
