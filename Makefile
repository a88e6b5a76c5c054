# Every command of the project. `make help` lists them.
# Needs python 3.11 or newer with pip and venv; PYTHON=... chooses one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIVOTAL := outputs/pivotal/teal-star/weight_delta.safetensors

# Threads that wait for others sleep instead of spinning. On a machine with other work, spinning made
# a training step of the miniature several times slower.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help env lock test test-slow test-all coverage check docs format demo benchmark miniature miniature-eval protocol figures clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

env: $(STAMP)  ## create .venv from requirements.lock; does nothing if it is up to date

# The project itself is installed editable, so that main.py and scripts/ find `ldm` and `main`.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"python 3.11 or newer is needed, this is %d.%d: make env PYTHON=..." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

lock:  ## write requirements.lock again from the version ranges of pyproject.toml
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==2.13.0
	build/lock/bin/python -m pip install --quiet -e '.[dev]'
	build/lock/bin/python -m pip freeze --exclude-editable | grep -viE '^nvidia-|^triton' \
		| sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

# One worker for each core, with one thread: with more, the workers would compete for the cores.
test: env  ## run the fast tests, which need no GPU and no 1.4B weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-slow: env  ## run the slow tests, such as the whole demo
	$(BIN)/python -m pytest -m "slow and not gpu and not weights"

test-all: env  ## run all tests that this machine can run, also those for a GPU and the 1.4B weights
	$(BIN)/python -m pytest -m ""

# The tests of the modules that load, save and resume. pyproject.toml lists the modules.
COVERING := tests/checkpoint tests/words tests/data tests/test_image_io.py \
	tests/models/test_latent_diffusion.py \
	$(addprefix tests/cli/test_,convert_embedding.py merge.py) \
	$(addprefix tests/training/test_,config.py reliability.py run.py stages.py variants.py)

coverage: env  ## measure the branch coverage of loading, saving and resuming; below 95% is an error
	rm -rf build/coverage
	$(BIN)/python -m coverage run -m pytest $(COVERING)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

docs: env  ## build the documentation: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

check: env docs  ## run ruff (lint and format), mypy and a strict build of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env  ## correct what ruff can correct
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: env  ## learn a word with the miniature model and generate its images: outputs/demo/index.html
	$(BIN)/python scripts/demo.py $(DEMO_ARGS)

benchmark: env  ## compare speed and memory with diffusers and the original: docs/performance.md
	$(BIN)/python scripts/benchmark.py --page docs/performance.md $(BENCHMARK_ARGS)

miniature: env  ## train the miniature model from nothing (hours; continues after a stop)
	$(BIN)/python scripts/miniature/train.py $(MINIATURE_ARGS)

miniature-eval: env  ## measure what models/miniature/README.md reports
	$(BIN)/python scripts/miniature/evaluate.py $(MINIATURE_ARGS)

protocol: env  ## learn and score the paper's variants in the miniature (hours; continues after a stop)
	$(BIN)/python scripts/protocol.py configs/protocol/miniature.yaml $(PROTOCOL_ARGS)

figures: env $(PIVOTAL)  ## make the paper's figures with the miniature: outputs/figures
	$(BIN)/python scripts/figures.py $(FIGURES_ARGS)

# The second half of figure 11 needs this weight delta. It is as large as the model, so it is made here
# and not shipped.
$(PIVOTAL): models/miniature/model.safetensors | env
	$(BIN)/python scripts/figures.py pivotal

clean:  ## remove caches (not .venv, logs or outputs)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
