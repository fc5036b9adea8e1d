# Each target does its own set-up; PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
CONFIG ?= config/demo.yaml
# where the config's results go, whatever it extends
PROJECT = $(shell .venv/bin/flsl config --config $(CONFIG) | sed -n 's/^project: //p; s/^results: //p' | tr -d "'\"" | tac | paste -sd/)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test test-slurm lint format bench ui docs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[detect,workflow,test]'
	touch $@

demo: .venv/installed ## the whole pipeline on data that it makes itself
	snakemake --configfile $(CONFIG)
	@[ "$(PROJECT)/report.html" -nt "$(PROJECT)/summary.md" ] || \
	  snakemake --configfile $(CONFIG) --report "$(PROJECT)/report.html"
	@echo "figures: $(PROJECT)/summary.md   report: $(PROJECT)/report.html   MLflow: make ui"

test: .venv/installed ## the tests but those that need a SLURM cluster
	pytest -n auto --maxprocesses 4 --dist loadfile

test-slurm: .venv/installed ## on a real SLURM: installs and starts one (Debian or Ubuntu, root); FLSL_SLURM=1 uses yours
	tests/slurm/with-slurm.sh pytest tests/slurm

lint: .venv/installed ## what CI holds the code against
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check workflow
	snakemake --lint

format: .venv/installed
	ruff format .
	ruff check --fix .
	snakefmt workflow

docs: .venv/installed ## the schema and the tables that are generated from the settings
	flsl config --write-docs

BENCHMARKS = train_step scaling input_pipeline overheads knn linear_grid propagation davis_eval coco_eval mask_codes \
  uavdt_eval track_sync dag

bench: .venv/installed ## the CPU benchmarks of speed; their figures go to results/bench
	for name in $(BENCHMARKS); do python benchmarks/$$name.py --out results/bench/$$name.json || exit 1; done

ui: .venv/installed ## MLflow in the browser; the address that it says first shows settings and figures of all runs
	@tail -qn 1 "$(PROJECT)/tracked.txt" "$(PROJECT)"/ablations/*/tracked.txt 2> /dev/null | tail -n 1
	mlflow ui --backend-store-uri "sqlite:///$(PROJECT)/mlflow.db" --port 5000
