# Verbs for people; `.ci/run` is what must pass.
.PHONY: setup lint type test bench

setup:
	pip install -e ".[all,test]"

lint:
	ruff check .
	ruff format --check .
	lint-imports

type:
	mypy

test:
	pytest

bench:
	moevision bench mofme
