"""The tiny model and its edited copy."""

from __future__ import annotations

from small_edits import models

__all__ = ["models"]
