# 'make' alone lists what there is.

PYTHON ?= python3

# For the developer: the sources as they stand, with the tools of 'test' and 'check'.
VENV = .venv
# For demo and bench: a built wheel, installed as a user would. Apart from the developer's, since
# it is made by root.
WHEEL_VENV = build/venv

SOURCES = $(shell find pyvpn twisted -name '*.py' -o -name py.typed) setup.cfg setup.py
IS_ROOT = [ "$$(id -u)" = 0 ]

.DELETE_ON_ERROR:
.PHONY: help deps venv test check scenes demo bench bench-compare bench-figures bench-micro install uninstall clean

help:
	@echo 'sudo make demo       the whole VPN on this machine, in network namespaces (KEEP=1: leave it up)'
	@echo 'make test            all tests; as root those in network namespaces too'
	@echo 'sudo make install    PyVPN in /opt/pyvpn, its commands in /usr/local/bin; again: upgrade'
	@echo 'sudo make uninstall  removes that and leaves the state'
	@echo
	@echo 'make check           lint, format, types'
	@echo 'sudo make scenes     real WireGuard programs, homes, cafés and offices, scene by scene (WIREGUARD_GO=PROGRAM: also'
	@echo '                     with that; SCENES="--quick", "--only WORD": some; 25 minutes)'
	@echo 'sudo make bench      asked and measured figures: bench-compare, beside other VPNs (20 minutes),'
	@echo '                     and bench-figures, of its own'
	@echo 'make bench-micro     what the parts of the core cost, one by one (2 minutes)'
	@echo 'make venv            the virtual environment for development, in $(VENV)'
	@echo 'sudo make deps       the system packages that all of this needs'
	@echo 'make clean           removes what was made here'

deps:
	@contrib/deps.sh

venv: $(VENV)/made

# editable_mode=compat: the other editable modes hide the plugin from twistd. An older pip ignores
# it for a project without pyproject.toml, hence --use-pep517.
$(VENV)/made: setup.cfg setup.py
	@DEPS=build contrib/deps.sh
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip setuptools wheel
	PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --use-pep517 --no-build-isolation \
	    --config-settings editable_mode=compat --editable '.[test,dev]'
	@touch $@

test: venv
	@if $(IS_ROOT); then contrib/deps.sh; contrib/resolvers.sh || \
	    echo 'the tests with a real systemd-resolved and resolvconf will be skipped'; else \
	    contrib/deps.sh --check || :; \
	    echo 'not root: the tests in network namespaces will be skipped'; fi
	$(VENV)/bin/python -m twisted.trial -j2 tests

check: venv
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy -p pyvpn

$(WHEEL_VENV)/made: $(SOURCES)
	@DEPS=build contrib/deps.sh
	[ -e $(WHEEL_VENV)/bin/python ] || $(PYTHON) -m venv $(WHEEL_VENV)
	rm -rf build/wheel
	contrib/wheel.sh $(WHEEL_VENV)/bin/python build/wheel
	$(WHEEL_VENV)/bin/python -m pip install --quiet build/wheel/*.whl
	$(WHEEL_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

demo: root deps $(WHEEL_VENV)/made

demo:
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python contrib/demo.py

# As installed, like the demo. Ends with 'N passed, N failed'; one that did not run has failed.
scenes: root deps $(WHEEL_VENV)/made
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python -m tests.scenes $(SCENES)

# A gate that is missed, or a figure, is no reason not to measure the rest.
bench: root
	@status=0; for part in bench-compare bench-figures; do \
	    $(MAKE) --no-print-directory $$part || status=1; done; exit $$status

bench-compare: root $(WHEEL_VENV)/made
	@DEPS=bench contrib/deps.sh
	@status=0; PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/compare.py || status=$$?; \
	    [ $$status = 2 ] || PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/report.py; \
	    exit $$status

bench-figures: root deps $(WHEEL_VENV)/made
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/startup.py
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/limits.py
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/crashes.py
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/recovery.py
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/sessions.py
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/wireguard.py
	@PYTHONDONTWRITEBYTECODE=1 $(WHEEL_VENV)/bin/python bench/network.py

# Few processes: one by one they show how figures differ from one start to the next.
bench-micro: venv
	@mkdir -p build/bench
	@rm -f build/bench/micro.json
	@PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python bench/micro.py --quiet --processes 5 \
	    --output build/bench/micro.json

.PHONY: root
root:
	@$(IS_ROOT) || { echo 'this makes network namespaces, which takes root: sudo make $(MAKECMDGOALS)' >&2; exit 1; }

install uninstall:
	@PYTHON='$(PYTHON)' contrib/install.sh $@

clean:
	rm -rf build dist $(VENV) *.egg-info _trial_temp* .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name dropin.cache -delete
