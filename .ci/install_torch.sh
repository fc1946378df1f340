#!/bin/sh
# install_torch.sh PYTHON VERSION: the CPU build where no NVIDIA driver is found, else the default (CUDA) build.
set -eu
python=$1 version=$2
if command -v nvidia-smi >/dev/null 2>&1; then
    exec "$python" -m pip install --quiet "torch==$version" numpy
fi
# The CPU build, if an index or folder that pip already knows has it; else uv, which knows PyTorch's own indexes.
"$python" -m pip install --quiet "torch==$version+cpu" numpy 2>/dev/null && exit 0
echo "fastllm: no CPU build of torch $version where pip looks; asking uv for it" >&2
"$python" -m pip install --quiet uv
exec "$python" -m uv pip install --quiet --python "$python" --torch-backend=cpu "torch==$version" numpy
