# Every command of the project. `make demo` and `make test` need only python3.11, pip and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= studies/demo

.PHONY: demo test slow gpu check format bench faults documents clean

# Set-up: a stamp file per set of extras, remade when the requirements change.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp  ## the main job on embedded data, minutes on two cores; writes one page
	$(BIN)/retarget study pskd --preset demo --jobs 2 --out $(DEMO_OUT)/pskd
	$(BIN)/retarget study trojdiff --preset demo --jobs 2 --out $(DEMO_OUT)/trojdiff
	$(BIN)/retarget study pope --preset demo --jobs 2 --out $(DEMO_OUT)/pope
	$(BIN)/retarget audit --preset demo --out $(DEMO_OUT)/audit
	$(BIN)/retarget report $(DEMO_OUT)/pskd $(DEMO_OUT)/trojdiff $(DEMO_OUT)/pope --out $(DEMO_OUT)

test: $(VENV)/dev.stamp  ## the whole suite
	$(BIN)/python -m pytest

slow: $(VENV)/dev.stamp  ## evidence that takes minutes
	$(BIN)/python -m pytest -m slow

gpu: $(VENV)/dev.stamp  ## what needs CUDA; skipped with a reason elsewhere
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/dev.stamp  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp  ## every figure as a ratio to its peer: one JSON line each, then a table
	$(BIN)/python -m benchmarks

faults: $(VENV)/dev.stamp  ## 10,000 damaged inputs: right result, clear error, traceback or hang; recorded
	$(BIN)/python -m faults --record

documents: $(VENV)/dev.stamp  ## the map and the result tables of README.md and the method cards
	$(BIN)/python tools/write_documents.py

clean:
	rm -rf $(VENV)
