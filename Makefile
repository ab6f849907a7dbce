# make train               the default: flow=resflow data=moons
# make train ARGS="flow=iresnet data=rings"
# make test                what the project checks of itself
# make test-slow           what takes half an hour more, or needs an accelerator
PYTHON ?= python3
VENV ?= .venv
ARGS ?= flow=resflow data=moons

.PHONY: help train test test-slow clean

help:
	@sed -n '1,4s/^# //p' Makefile

train: $(VENV)/.installed
	$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

test-slow: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m "slow or cuda"

$(VENV)/.installed: requirements.txt | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(wildcard requirements*.txt) | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet -r requirements-dev.txt
	@touch $@ $(VENV)/.installed

# Some systems split ensurepip from Python; there the system's own pip, if there is one, fills the new environment.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip --clear $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install pip; }

clean:
	rm -rf $(VENV)
