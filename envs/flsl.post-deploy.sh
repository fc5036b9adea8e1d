#!/usr/bin/env bash
# Run by snakemake in the new environment, in the project's root.
set -euo pipefail
pip install --constraint constraints.txt --editable '.[detect,workflow]'
