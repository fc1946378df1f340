#!/bin/sh
# gpu.sh PYTHON RESULTS: on a machine with a GPU and nvcc, build the extension in place, run the CUDA tests, the
# benchmarks, and compute-sanitizer over some of the tests. PYTHON needs torch, pybind11, ninja, setuptools, pytest and
# hypothesis. Every part runs even if an earlier one failed; the exit status tells.
set -u
python=$1 results=$2 failed=0
tests="tests/ops tests/cuda tests/generation/test_devices.py tests/train/test_on_gpu.py tests/test_optim.py"
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu: torch sees no CUDA device" >&2
    exit 1
fi

part() {
    name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" || { echo "gpu: $name failed" >&2; failed=1; }
}

part build 580 env FASTLLM_CUDA=1 FASTLLM_CAPABILITIES=native "$python" setup.py --quiet build_ext --inplace
[ $failed = 0 ] || exit 1
part tests 500 "$python" -m pytest -q -m "cuda and not slow" $tests
part benchmarks 900 "$python" -m benchmarks --device cuda --rounds 5 --output "$results/cuda.json"
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if "$sanitizer" "$python" -c 'import torch; torch.zeros(1).cuda()' >/dev/null 2>&1; then
    # torch's allocator hands out pieces of larger blocks, within which an overrun would not be seen.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck; do
        part $tool 300 "$sanitizer" --tool $tool --kernel-name kns=fastllm --error-exitcode 1 --print-limit 20 \
            "$python" -m pytest -q -x -m "cuda and not slow" -k "dtype2 or adamw or clip" $tests
    done
else
    echo "gpu: compute-sanitizer is not there or takes no part of this GPU: left out"
fi
exit $failed
