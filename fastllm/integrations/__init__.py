"""fastllm's kernels inside other libraries' models, one package a library; each is imported only by who uses it."""
