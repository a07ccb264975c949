"""Where torch is not installed, the tests of what needs it are left out."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_canary.py", "test_transformers_engine.py"]
