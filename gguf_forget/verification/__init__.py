"""Judging a GGUF: questions (:mod:`.probes`), numbers (:mod:`.metrics`), verdict (:mod:`.gates`)."""
