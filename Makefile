# Everything from a fresh machine with Python 3.11+: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: setup demo test check bench bench-data bench-train bench-serve soak clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   create $(VENV) with the tested set of packages (constraints.txt)"
	@echo "make demo    run the example project: choose, build data, train, measure, export, gate, serve"
	@echo "make test    checks and tests, as CI runs them"
	@echo "make check   format, lint, types and import contract only"
	@echo "make bench   measure this machine beside the figures in bench/demo/RESULTS.md"
	@echo "make bench-data   the data build beside data-juicer and datatrove (bench/data/RESULTS.md; half an hour)"
	@echo "make bench-train  training beside TRL and LLaMA-Factory (bench/train/RESULTS.md; an hour)"
	@echo "make bench-serve  serving beside llama.cpp's server and LiteLLM (bench/serve/RESULTS.md; half an hour)"
	@echo "make soak    what serving survives, at full length: overload, kills, hangs, slow clients (half an hour)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("inhouse needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	@touch $@

demo: setup
	@$(BIN)/inhouse run examples/desk-routing/inhouse.yaml --ask

check: setup
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	@rm -f .coverage .coverage.*
	INHOUSE_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	@$(BIN)/coverage report --skip-covered --fail-under=90
	@$(BIN)/coverage report --include='src/inhouse/core/*,src/inhouse/flow/*' --fail-under=100

bench: setup
	$(BIN)/python bench/demo/run.py

bench-data: setup
	$(BIN)/python bench/data/corpus.py
	$(BIN)/python bench/data/peers.py
	$(BIN)/python bench/data/run.py

bench-train: setup
	$(BIN)/python bench/train/model.py
	$(BIN)/python bench/train/rows.py
	$(BIN)/python bench/train/peers.py
	$(BIN)/python bench/train/run.py
	$(BIN)/python bench/train/run.py ours-dpo trl-dpo trl-dpo-best
	$(BIN)/python bench/train/run.py --ladder
	$(BIN)/python bench/train/run.py --losses

bench-serve: setup
	$(BIN)/python bench/serve/gguf_files.py
	$(BIN)/python bench/serve/peers.py
	$(BIN)/python bench/serve/run.py
	$(BIN)/python bench/serve/run.py tokens prompt --kind q4_k_m

soak: setup
	$(BIN)/python bench/soak/run.py

clean:
	rm -rf $(VENV) .inhouse
