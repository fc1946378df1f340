"""What training asks of a GPU: a step of the optimizer, and a whole step of a model, in a captured graph."""

import torch

from fastllm import ops
from fastllm.models import GPT, GPTConfig
from fastllm.optim import AdamW


def parameters_on(device):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(1 + i % 5, 3).to(device)) for i in range(70)]


def set_gradients(parameters, seed):
    torch.manual_seed(seed)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape).to(parameter.device)
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.copy_(gradient)


def test_steps_of_adamw_in_a_graph(gpu):
    """The learning rate, the norm that clips and the count of steps are read on the device, at each replay."""
    both = [parameters_on("cuda") for _ in range(2)]
    rates = [torch.tensor(0.1).to("cuda") for _ in both]
    optimizers = [AdamW(parameters, lr=rate, max_grad_norm=1.0) for parameters, rate in zip(both, rates, strict=True)]
    for parameters, optimizer in zip(both, optimizers, strict=True):  # makes the state
        set_gradients(parameters, 1)
        optimizer.step()
    with gpu.captured() as graph:
        optimizers[0].step()
    for step, rate in enumerate((0.1, 0.3, 0.01)):
        for its in rates:
            its.fill_(rate)
        for parameters in both:
            set_gradients(parameters, step)
        graph.replay()
        optimizers[1].step()
        for captured, eager in zip(*both, strict=True):
            assert torch.equal(captured.cpu(), eager.cpu())
    assert optimizers[0].last_grad_norm == optimizers[1].last_grad_norm


def test_adamw_never_waits_for_the_device(gpu):
    parameters = parameters_on("cuda")
    optimizer = AdamW(parameters, max_grad_norm=1.0)
    set_gradients(parameters, 1)
    optimizer.step()
    with gpu.without_waiting():
        optimizer.step()


def test_adamw_on_a_second_device(gpu):
    results = []
    for device in ("cuda:0", f"cuda:{gpu.count - 1}"):
        parameters = parameters_on(device)
        set_gradients(parameters, 1)
        with gpu.other_stream(0), gpu.other_stream(gpu.count - 1):
            AdamW(parameters, max_grad_norm=1.0).step()
        results.append([parameter.detach().cpu() for parameter in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


CONFIG = GPTConfig(vocab_size=20, context_length=8, n_layer=1, n_head=2, n_embd=16, dropout=0.2)


def test_steps_of_a_gpt_in_a_graph(gpu):
    """Forward with dropout, backward and AdamW: each replay takes the tokens and the masks of its own step."""
    models, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(GPT(CONFIG).to("cuda"))
        optimizers.append(AdamW(models[-1].parameters(), lr=0.1, max_grad_norm=1.0))
    tokens, targets = (torch.zeros(2, 8, dtype=torch.int64).to("cuda") for _ in range(2))

    def step(model, optimizer):
        optimizer.zero_grad()
        loss = model.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    with gpu.other_stream():
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(1)
            step(model, optimizer)
    with gpu.captured() as graph:
        loss = step(models[0], optimizers[0])
    losses = []
    for seed in range(3):
        for tensor in (tokens, targets):
            tensor.copy_(torch.randint(0, 20, tensor.shape))
        torch.manual_seed(seed)
        graph.replay()
        torch.manual_seed(seed)
        assert torch.equal(loss.cpu(), step(models[1], optimizers[1]).cpu())
        losses.append(loss.item())
    assert len(set(losses)) == 3
    for captured, eager in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(captured.cpu(), eager.cpu())


def test_a_gpt_compiled_to_graphs(gpu):
    torch.manual_seed(0)
    model = GPT(CONFIG).to("cuda").eval()
    torch._dynamo.reset()
    compiled = gpu.compile(model.loss)
    for _ in range(3):
        tokens, targets = (torch.randint(0, 20, (2, 8)).to("cuda") for _ in range(2))
        expected = model.loss(tokens, targets)
        gradients = torch.autograd.grad(expected, list(model.parameters()))
        results = compiled(tokens, targets)
        torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-6)
        for result, right in zip(torch.autograd.grad(results, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-5)


def assert_all_differ(masks):
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_dropout_in_a_graph_draws_anew_at_each_replay(gpu):
    x = torch.ones(64).to("cuda")
    with gpu.other_stream():
        ops.dropout(x)
    with gpu.captured() as graph:
        y = ops.dropout(x)
    masks = []
    for _ in range(3):
        graph.replay()
        masks.append(y.cpu())
    assert_all_differ(masks)


def test_dropout_that_is_compiled_draws_anew_at_each_call(gpu):
    torch._dynamo.reset()
    compiled = gpu.compile(ops.dropout)
    x = torch.ones(64).to("cuda")
    assert_all_differ([compiled(x).cpu() for _ in range(4)])
