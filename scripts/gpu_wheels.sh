#!/usr/bin/env bash
# The wheels that a GPU machine without a network lacks: scripts/gpu_wheels.sh [FOLDER]
#
# For Python 3.12 on Linux (x86_64) with torch, torchvision, pandas, matplotlib and scikit-learn, which are not
# brought along. FOLDER/core (4 MB) has what hardly a machine has; FOLDER/more (33 MB) what some have: boto3,
# IPython, requests, tensorboard, torchmetrics. There, with the project unpacked:
#
#   python -m pip install --no-index --no-deps --target packages FOLDER/core/*.whl
#   python -c 'import boto3, IPython, tensorboard, torchmetrics' || \
#       python -m pip install --no-index --no-deps --target packages FOLDER/more/*.whl
#   PYTHONPATH=packages python scripts/gpu_day.py --minutes 25 --out results
set -euo pipefail
folder=${1:-wheels}
core=(fastai==2.8.7 fastcore==1.12.47 fasttransform==0.0.2 fastprogress==1.0.5 fastdownload==0.0.8
    plum-dispatch==2.9.0 beartype rich hydra-core==1.3.8 omegaconf==2.3.1 greenlet filelock)
more=(boto3 botocore s3transfer jmespath torchmetrics lightning-utilities torch-fidelity ipython traitlets
    decorator pexpect ptyprocess prompt-toolkit wcwidth pygments stack-data executing asttokens pure-eval jedi
    parso matplotlib-inline ipython-pygments-lexers requests urllib3 idna certifi charset-normalizer cloudpickle
    safetensors markdown-it-py mdurl tensorboard absl-py protobuf psutil)
fetch() {  # FOLDER PACKAGE…
    local to=$1
    shift
    python -m pip download --quiet --no-deps --only-binary=:all: --python-version 312 --implementation cp \
        --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        --platform any --dest "$to" "$@"
}
fetch "$folder/core" "${core[@]}"
# Hydra's parser comes as source.
python -m pip wheel --quiet --no-deps --wheel-dir "$folder/core" antlr4-python3-runtime==4.9.3
fetch "$folder/more" "${more[@]}"
du -sh "$folder"/core "$folder"/more
