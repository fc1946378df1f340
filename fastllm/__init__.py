"""Hand-written Transformer kernels for CPU and CUDA as PyTorch ops, layers and models."""
