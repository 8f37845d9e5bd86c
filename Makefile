# The two commands of a new checkout. Everything else is `python -m qdexp`.
PYTHON ?= python3
VENV ?= .venv
# Processes that run tests, a file each: they, and those that they start, compute with one thread.
WORKERS ?= 2
test slow: export OMP_NUM_THREADS = 1
TEST = pytest -n $(WORKERS) --dist loadfile
RUN = $(VENV)/bin/python -m

.PHONY: install demo test slow bench docs linkcheck

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(RUN) qdexp -m sweep=demo hydra/launcher=local
	$(RUN) qdexp.report demo --no-figures
	@echo "open     file://$(CURDIR)/outputs/reports/demo/index.html"

test: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(RUN) $(TEST)

slow: install
	$(RUN) $(TEST) -m slow

# One thread, so that the ratios of CPU times hold on a machine that does other things too.
bench: install
	OMP_NUM_THREADS=1 $(RUN) benchmarks

docs: install
	$(RUN) sphinx --builder html --fail-on-warning --quiet docs docs/_build
	@echo docs/_build/index.html

# Links to other sites, which need a network; those within the pages are checked by the tests.
linkcheck: install
	$(RUN) sphinx --builder linkcheck --define nb_execution_mode=off docs docs/_build/linkcheck
