"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch or llama.cpp is loaded: threads that spin while they wait starve a machine that has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A busy machine is slow at times: no time limit for one example, and the same examples in every run.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
