# `make demo` and `make test` set up what they need; nothing is done twice.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-fast lint format bench clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/alignloop run configs/demo.yaml

test: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term --durations=5 -q

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu" -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	for figure in benchmarks/*.py; do echo "== $$figure"; $(BIN)/python $$figure || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .coverage
