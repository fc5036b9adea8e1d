#!/usr/bin/env bash
# Run by snakemake in the new environment, in the project's root; on a machine without conda, run it in a virtual one.
set -euo pipefail
pip install --constraint constraints.txt --editable '.[detect,workflow]'
# detectron2 reads its own configs through pkg_resources, which newer setuptools do not have
pip install 'setuptools<80' wheel 'fvcore>=0.1.5,<0.1.6' 'iopath>=0.1.7,<0.1.10' 'omegaconf>=2.1,<2.4' \
    'hydra-core>=1.1' yacs termcolor tensorboard
pip install --no-build-isolation --no-deps \
    'git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833'
