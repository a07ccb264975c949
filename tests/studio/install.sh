#!/usr/bin/env bash
# An environment for the audit and browser tests: Label Studio, its SDK, playwright and this project, without torch
# (about 1.5 GB).
#
#   tests/studio/install.sh [VENV]     VENV is .venv-audit in the repository's root unless given
#   .venv-audit/bin/python -m pytest -m "studio or browser" tests
#
# The browser is the system's chromium. Running it again does nothing when all is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$(realpath -m "${1:-$root/.venv-audit}")
python=${PYTHON:-python3}

works() { # the imports, and the server that the tests were written for
    (cd / && "$venv/bin/python" - "$root" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import hypothesis, label_studio_sdk, playwright, pytest, statsmodels
from vlm_rlaif.feedback import verdict

assert version("label-studio") == "1.23.2", version("label-studio")
assert Path(verdict.__file__).is_relative_to(sys.argv[1]), verdict.__file__
print("Label Studio", version("label-studio"), "· SDK", version("label-studio-sdk"))
PY
    )
}

if [[ -x $venv/bin/python ]] && works 2>/dev/null; then
    echo "$venv is ready."
    exit 0
fi
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet label-studio==1.23.2 playwright pytest hypothesis pillow -e "$root[audit]"
works
