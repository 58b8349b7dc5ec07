#!/usr/bin/env bash
# Optional: installs the PyTorch and transformers of tools/reference/requirements.txt into tools/reference/.venv, where
# test/tools/reference.test.ts finds them. Nothing outside of that folder changes.
#
#   scripts/install-pytorch.sh
#
# Needs python3 (3.11 or newer) with pip. On Linux the default build brings CUDA along: 2.7 GB to download, 4.9 GB on disk, a
# minute and a half. With pip's own settings (PIP_INDEX_URL) the build for CPUs alone, which computes the same, does as well.
set -euo pipefail
cd "$(dirname "$0")/../tools/reference"

# pip of the machine installs into the environment: Debian's python3 comes without what it needs to put pip inside.
python3 -m venv --without-pip .venv
install() { python3 -m pip --python .venv/bin/python install --no-cache-dir --progress-bar off "$@"; }

install -r requirements.txt

.venv/bin/python -c '
import torch, transformers
print(f"PyTorch {torch.__version__}, transformers {transformers.__version__}: ready")
'
