PYTHON ?= $(if $(wildcard .venv/bin/python),$(abspath .venv/bin/python),python3)

.DEFAULT_GOAL := help
.PHONY: help install lint types test engine-test demo bench ci clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=... chooses the interpreter, now $(PYTHON); ARGS=... is passed on by test, engine-test, demo and bench"

install:  ## the package, editable, with everything for development
	$(PYTHON) -m pip install --editable '.[dev]'

lint:  ## ruff
	$(PYTHON) -m ruff check .

types:  ## mypy --strict
	$(PYTHON) -m mypy

test:  ## unit, component and end-to-end tests; no GPU, no engine
	$(PYTHON) -m pytest -n 4 $(ARGS)

engine-test:  ## the lane against real SGLang workers; the first run provisions a CPU engine (2.8 GB)
	PYTHON="$(PYTHON)" bash tests/engine/run.sh $(ARGS)

demo:  ## the router in front of two mock workers, until Ctrl-C
	$(PYTHON) -m sgl_router demo $(ARGS)

bench:  ## drive the demo's multi-turn workload through mock workers and print where it went and how fast
	$(PYTHON) -m sgl_router demo --drive $(ARGS)

ci:  ## all of the above checks from a fresh environment, as CI runs them
	.ci/run

clean:  ## caches and build products; not the provisioned engine
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov *.egg-info
	find sgl_router tests -name __pycache__ -type d -prune -exec rm -rf {} +
