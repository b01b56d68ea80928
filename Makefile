# Every target does its own set-up; a second run does no work twice. What each step does: scripts/setup_env.py.
#   make setup [PYTHON=python3.11]   virtual environment, wheels, message build, all inside this folder
#   make demo [CLIP=bikes]           the real node on a recorded camera; leaves its results in demo_output/
#   make test [ARGS="-k rollout"]    the tests that CI runs; test-slow runs the long ones too
#   make lint                        ruff, with the rule that only decaf_ros/nodes imports ROS
#   make bench [QUICK=1]             benchmarks
#   make clean                       removes everything that set-up, demo and tests made here

SHELL := /bin/bash
PYTHON ?=
CLIP ?=
QUICK ?=
ARGS ?=
RUN := scripts/with_env.sh

.PHONY: help setup demo test test-slow lint bench clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@python3 scripts/setup_env.py --python "$(PYTHON)"

demo: setup
	@$(RUN) python -m demo.run $(if $(CLIP),--clip "$(CLIP)")

test: setup
	$(RUN) python -m pytest -m "not slow" $(ARGS)

test-slow: setup
	$(RUN) python -m pytest $(ARGS)

lint: setup
	$(RUN) ruff check .

bench: setup
	$(RUN) python benchmarks/run.py $(if $(QUICK),--quick)

clean:
	rm -rf .venv build install log .demo demo_output .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
