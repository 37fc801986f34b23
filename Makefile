# Every target makes what it needs by itself: a virtual environment, the model and the data (in ~/.cache/ripieno).
PYTHON ?= python3

.PHONY: install demo test oracles lint clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	.venv/bin/ripieno demo

# One thread a process: two processes fill two cores, and the tests' tiny models gain nothing from more.
test: install
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal --ignore tests/oracles

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Programs that only check ours live in an environment of their own.
oracles: .venv-oracles/.installed
	.venv-oracles/bin/pytest tests/oracles

.venv-oracles/.installed: tests/oracles/requirements.txt
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-oracles/bin/pip install --quiet --disable-pip-version-check -r tests/oracles/requirements.txt
	.venv-oracles/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-oracles
