"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is slow at times: no time limit for one example, and the same examples in every run.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
