# make run   set up, simulate three days of recordings, run the cross-session experiment, write its report
# make test  set up, then linters, types, import directions and every test
# make test-slurm  a run on a real Slurm cluster of this machine (root; installs slurm-wlm and munge where missing), else skipped
# make fuzz  2,000 damaged files of every format that is read
# make faults  kills, full disks, damaged files, four runs at once: what was stored survives (an hour)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv run test test-slurm fuzz faults clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bci_adapt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

run: venv
	$(BIN)/bci-adapt run configs/demo.toml

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -n 2 --dist worksteal
	-@$(BIN)/bci-adapt reproduce --check docs/claims.json

test-slurm: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[slurm]'
	BCI_ADAPT_TEST_SLURM=1 tests/slurm/with_slurm.sh $(BIN)/python -m pytest -n 0 tests/test_slurm.py || test $$? = 77

faults: venv
	$(BIN)/python tests/faults/campaign.py

fuzz: venv
	BCI_ADAPT_FUZZ=2000 BCI_ADAPT_FUZZ_FORMATS=2000 $(BIN)/python -m pytest -n 2 -s tests/test_fuzz.py tests/test_fuzz_formats.py

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
