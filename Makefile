# Every target makes what it needs by itself: a virtual environment, the model and the data (in ~/.cache/ripieno).
PYTHON ?= python3
# What Python compiled is kept, whatever the shell says: tests and launchers start many processes.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help install browser demo test docs torture test-slurm oracles bench lint clean

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed ## a virtual environment, .venv, with all that the others need

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Debian's browser, for the tests of the report. Where it cannot be installed those tests skip, and say so.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq >/dev/null && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	echo "chromium is missing and cannot be installed here (that takes root, apt-get and its network): its tests will skip" >&2

demo: install ## the whole job once: a small model, real questions, a report
	.venv/bin/ripieno demo

# One thread a process: two processes fill two cores, and the tests' tiny models gain nothing from more. Where a test
# takes two threads on purpose, one that waits must not spin on a core that the other process needs.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv/bin/pytest
TESTS = -n 2 --dist worksteal --ignore tests/oracles --ignore tests/slurm
test: install browser ## the tests
	$(PYTEST) $(TESTS)

# The site, docs/_build/index.html, from docs/ and the program itself, without a network. Every warning is an error: a link
# that leads nowhere, a page that is in no list, a name that is not documented.
docs: install ## the documentation as a site, docs/_build/index.html
	.venv/bin/sphinx-build -c docs --builder html --fresh-env --nitpicky --fail-on-warning --keep-going --quiet . docs/_build

# Every fault and every fuzzer, many times, and a table of them: half an hour on two cores. `make test` does a few of each.
torture: install ## every fault and every fuzzer, and a table of what was lost: half an hour
	RIPIENO_TORTURE=1 $(PYTEST) $(TESTS) -m fault

# A real Slurm on this machine, Debian's, set up for these tests and taken down after them: as root, three minutes.
test-slurm: install ## whole runs on a real Slurm, set up for this: as root, three minutes
	@{ command -v slurmctld && command -v slurmd; } >/dev/null || { apt-get update -qq >/dev/null && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; }
	RIPIENO_SLURM=1 $(PYTEST) tests/slurm

lint: install ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Programs that only check ours live in an environment of their own, on top of the first; there a missing one is a
# failure, not a skip.
oracles: .venv-oracles/.installed ## measures compared with those of other programs
	RIPIENO_ORACLES=1 .venv-oracles/bin/python -m pytest tests/oracles

.venv-oracles/.installed: tests/oracles/requirements.txt .venv/.installed
	$(PYTHON) -m venv .venv-oracles
	echo "import site; site.addsitedir('$$(echo $(CURDIR)/.venv/lib/python*/site-packages)')" \
	> $$(echo .venv-oracles/lib/python*/site-packages)/ripieno.pth
	.venv-oracles/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/oracles/requirements.txt
	.venv-oracles/bin/pip install --quiet --disable-pip-version-check --no-deps torch-uncertainty==0.13.0
	touch $@

# Side by side with what people use today: one and a half hours, on a machine that does nothing else. ARGS=--quick: minutes.
# Written to benchmarks/results.json, and from there into the table of benchmarks/README.md.
BENCH = .venv-bench/bin/python benchmarks
bench: .venv-bench/.installed ## speed beside what people use today: one and a half hours
	$(BENCH)/train.py $(ARGS)
	$(BENCH)/evaluate.py $(ARGS)
	$(BENCH)/memory.py $(ARGS)
	$(BENCH)/roofline.py $(ARGS)
	$(BENCH)/scaling.py $(ARGS)
	$(BENCH)/train.py --threads 1 $(ARGS)
	$(BENCH)/evaluate.py --threads 1 $(ARGS)
	$(BENCH)/roofline.py --threads 1 $(ARGS)
	$(BENCH)/table.py

.venv-bench/.installed: benchmarks/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/requirements.txt
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean: ## remove the virtual environments
	rm -rf .venv .venv-oracles .venv-bench
