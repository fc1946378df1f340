#!/bin/sh
# gpu.sh PYTHON RESULTS: on a machine with a GPU, run the CUDA tests, the sanitizer over them, and the benchmarks.
# PYTHON has fastllm built with its CUDA kernels. Every part runs even if an earlier one failed; the exit status tells.
set -u
python=$1 results=$2 failed=0
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu: torch sees no CUDA device" >&2
    exit 1
fi
"$python" -c 'from fastllm import ops; i = ops.build_info(); assert i["cuda"] == "yes", i["cuda_reason"]' || exit 1

part() {
    name=$1
    shift
    echo "== $name"
    "$@" || { echo "gpu: $name failed" >&2; failed=1; }
}

part tests "$python" -m pytest -q -m "cuda and not slow" tests
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if [ -x "$sanitizer" ]; then
    # torch's allocator hands out pieces of larger blocks, within which an overrun would not be seen.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck; do
        part "$tool" "$sanitizer" --tool "$tool" --error-exitcode 1 --print-limit 20 \
            "$python" -m pytest -q -x -m "cuda and not slow" -k "reference or dropout" tests/ops
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    echo "gpu: compute-sanitizer was not found, its part is left out"
fi
part benchmarks "$python" -m benchmarks --device cuda --output "$results/cuda.json"
exit $failed
