"""A plain torch GPT of nanoGPT's shape: the peer of a training step, and nothing clever."""

import torch
import torch.nn.functional as F

from fastllm.models import GPT, GPTConfig


class TorchBlock(torch.nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = config.n_embd
        self.n_head, self.p = config.n_head, config.dropout
        self.norm_1, self.norm_2 = (torch.nn.LayerNorm(c, bias=config.bias) for _ in range(2))
        self.qkv, self.projection = (torch.nn.Linear(c, n, bias=config.bias) for n in (3 * c, c))
        self.expand = torch.nn.Linear(c, 4 * c, bias=config.bias)
        self.contract = torch.nn.Linear(4 * c, c, bias=config.bias)
        self.dropout = torch.nn.Dropout(config.dropout)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.n_head, -1).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(c, dim=2))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        x = x + self.dropout(self.projection(y.transpose(1, 2).reshape(b, t, c)))
        return x + self.dropout(self.contract(F.gelu(self.expand(self.norm_2(x)), approximate="tanh")))


class TorchGPT(torch.nn.Module):
    """The same architecture as fastllm.models.GPT, from torch.nn alone; its loss is returned as nanoGPT's is."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.position = torch.nn.Embedding(config.context_length, config.n_embd)
        self.dropout = torch.nn.Dropout(config.dropout)
        self.blocks = torch.nn.ModuleList(TorchBlock(config) for _ in range(config.n_layer))
        self.norm = torch.nn.LayerNorm(config.n_embd, bias=config.bias)

    def loss(self, tokens, targets):
        x = self.dropout(self.token(tokens) + self.position.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.token.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    def copy_from(self, model: GPT) -> "TorchGPT":
        """Take over a fastllm GPT's weights, so that both compute the same loss."""
        renamed = {
            name.replace("embedding.token", "token")
            .replace("embedding.position", "position")
            .replace("attention.", "")
            .replace("feed_forward.", ""): value
            for name, value in model.state_dict().items()
        }
        self.load_state_dict(renamed)
        return self
