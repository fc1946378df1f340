"""Speed, measured the same way everywhere: python -m benchmarks."""
