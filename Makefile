# PYTHON=... uses the torch of an environment that exists; by default .venv is made and reused.
# TORCH=... is what pip installs into .venv.
TORCH ?= torch==2.13.0
BOOTSTRAP ?= python3
# What a GPU machine runs, for `make gpu-build`.
GPU_PYTHON ?= python3.12
SUITE ?= cpu
MINUTES ?= 5
CALL ?= first
CUDA_HOME ?= /usr/local/cuda
export OMP_WAIT_POLICY ?= passive

ifdef PYTHON
PY := $(PYTHON)
READY := build
else
PY := .venv/bin/python
READY := .venv/.installed
endif

# Two threads for each worker on any machine: kernels that share their work need whom to share it
# with. A test that hangs fails after 15 minutes.
PYTEST = OMP_NUM_THREADS=2 PYTEST_TIMEOUT=900 $(PY) -m pytest -q -n auto --maxprocesses 8 \
	--dist loadscope --no-loadscope-reorder tests

.PHONY: demo test test-all build lint bench gpu gpu-build clean

demo: $(READY)
	$(PY) -m seqkernels g2p --minutes $(MINUTES) --compare

# Every kind of test on few of its parameters; it says what it leaves out.
test: $(READY)
	$(PYTEST) -m "not exhaustive"

# Every test, on a build with the CUDA kernels where nvcc is.
test-all: $(READY)
ifneq ($(wildcard $(CUDA_HOME)/bin/nvcc),)
	SEQKERNELS_CUDA=1 $(PY) setup.py -q build_ext --inplace
else
	@echo "NOT EVERYTHING WILL BE TESTED: there is no nvcc in $(CUDA_HOME)/bin (CUDA_HOME names the toolkit)"
endif
	$(PYTEST)

build: $(if $(PYTHON),,$(READY))
	$(PY) setup.py -q build_ext --inplace

lint: $(READY)
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	$(PY) -c "from clang_format import clang_format; clang_format()" --dry-run --Werror \
		$$(git ls-files '*.h' '*.cpp' '*.cu')

# Under OpenMP's own settings, as a user's program runs: threads that sleep between parallel regions
# would slow torch.nn's many short ones.
bench: $(READY)
	env -u OMP_WAIT_POLICY $(PY) -m bench run $(SUITE)

# CALL=second, CALL=third; ARGS="--only ratios --minutes 2", ARGS=--list, ...
gpu:
	$(or $(PYTHON),python3) scripts/gpu.py $(CALL) $(ARGS)

# Everything that a GPU machine needs compiled, on a machine without a GPU.
gpu-build: $(if $(PYTHON),,$(READY))
	$(PY) scripts/gpu_build.py --python $(GPU_PYTHON)

.venv/.installed: pyproject.toml setup.py $(shell git ls-files csrc)
	@echo "Setting up .venv: $(TORCH), the build tools and seqkernels itself"
	test -x .venv/bin/python || $(BOOTSTRAP) -m venv .venv
	$(PY) -m pip install -q --upgrade pip "setuptools>=77" wheel
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install -q "$(TORCH)"
	$(PY) -m pip install -q ninja "pybind11>=2.12" numpy
	$(PY) -m pip install -q --no-build-isolation -e ".[test,g2p,lint]"
	touch $@

clean:
	rm -rf build .venv seqkernels/_C*.so seqkernels/_build.json
