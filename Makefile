# Every command of the project. `make demo` and `make test` need only python3.11, pip and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= studies/demo
ANY_LENGTH := --timeout 0 -o faulthandler_timeout=0
# Some need other versions of the suite's packages (pillow, importlib-metadata), so they are in no extra.
TRACKERS := 'trackio>=0.43' 'wandb>=0.31' 'mlflow-skinny>=3.17'

.PHONY: help demo test slow gpu trackers check format docs wheel bench faults documents lock clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

demo: $(VENV)/demo.stamp  ## three studies and two audits on embedded data, minutes on two cores; pages in studies/demo
	$(BIN)/retarget study pskd --preset demo --jobs 2 --out $(DEMO_OUT)/pskd
	$(BIN)/retarget study trojdiff --preset demo --jobs 2 --out $(DEMO_OUT)/trojdiff
	$(BIN)/retarget study pope --preset demo --jobs 2 --out $(DEMO_OUT)/pope
	$(BIN)/retarget audit --preset demo --out $(DEMO_OUT)/audit
	$(BIN)/retarget report $(DEMO_OUT)/pskd $(DEMO_OUT)/trojdiff $(DEMO_OUT)/pope --out $(DEMO_OUT)

test: $(VENV)/dev.stamp  ## the whole suite, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(VENV)/dev.stamp  ## evidence that takes minutes
	$(BIN)/python -m pytest -m slow $(ANY_LENGTH)

gpu: $(VENV)/dev.stamp  ## what needs CUDA; skipped with a reason elsewhere
	$(BIN)/python -m pytest -m gpu $(ANY_LENGTH)

trackers: $(VENV)/dev.stamp  ## --track trackio, wandb, mlflow for real, beside the suite's packages; needs the network
	$(BIN)/python -m venv $(VENV)/trackers
	$(VENV)/trackers/bin/python -m pip install --quiet $(TRACKERS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(VENV)/trackers/beside.pth
	mv $(VENV)/trackers/beside.pth $(VENV)/trackers/lib/python3*/site-packages/
	PYTHONPATH=$(CURDIR)/src $(VENV)/trackers/bin/python -m pytest -rs tests/study/test_tracking.py

check: $(VENV)/dev.stamp  ## lint, format, types, links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python tools/check_links.py

format: $(VENV)/dev.stamp  ## fix what lint and format find
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp  ## every figure as a ratio to its peer: one JSON line each, then a table
	$(BIN)/python -m benchmarks

faults: $(VENV)/dev.stamp  ## 10,000 damaged inputs; kills, full disks and crowds at every verb that writes; recorded
	$(BIN)/python -m faults --record

docs: $(VENV)/dev.stamp  ## the site, in docs/_build/html; needs no network
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build/html
	@echo docs/_build/html/index.html

wheel: $(BIN)/python  ## dist/retarget-VERSION-py3-none-any.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

documents: $(VENV)/dev.stamp  ## every table, picture and map that comes from results/ and docstrings
	$(BIN)/python tools/write_documents.py

lock: $(BIN)/python  ## requirements.lock, from pyproject.toml and constraints.txt; needs the network
	$(BIN)/python -m pip install --quiet uv
	grep '^#' requirements.lock > $(VENV)/head
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --constraint constraints.txt --universal \
		--python-version 3.11.5 --generate-hashes --no-annotate --no-header --output-file $(VENV)/lock
	cat $(VENV)/head $(VENV)/lock > requirements.lock

clean:  ## remove the virtual environment and what was built
	rm -rf $(VENV) dist docs/_build docs/_pages docs/reference
