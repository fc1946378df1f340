#!/bin/sh
# cuda_check.sh PYTHON: in an environment of its own, compile, link and import the extension with its CUDA kernels.
set -eu
if ! command -v nvcc >/dev/null 2>&1 && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    echo "cuda-check: skipped, nvcc was not found on PATH or under CUDA_HOME"
    exit 0
fi
venv=build/cuda-venv
if [ ! -x $venv/bin/python ]; then
    "$1" -m venv $venv
    $venv/bin/python -m pip install --quiet "torch==${CUDA_TORCH:-2.14.1}" numpy "setuptools>=77" wheel pybind11 ninja
fi
rm -rf build/cuda-tree
mkdir -p build/cuda-tree
cp -r setup.py pyproject.toml README.md LICENSE csrc fastllm build/cuda-tree/
cd build/cuda-tree
rm -f fastllm/_C_*.so
FASTLLM_CUDA=1 FASTLLM_CAPABILITIES=native ../cuda-venv/bin/python setup.py --quiet build_ext --inplace
../cuda-venv/bin/python -c 'from fastllm import ops; print(ops.build_info()); print([r["op"] for r in ops.report() if r["kernel"] == "fastllm (cuda)"])'
