"""The one door to llama.cpp: the quantizer that decides tensor types, and the scorer that runs a GGUF.

Only the modules of this package import ``llama_cpp``, and only inside functions: importing
:mod:`gguf_forget.llama` loads nothing heavy. See :mod:`.library` (loading, logs), :mod:`.quantizer`
(``quantize``, ``plan``) and :mod:`.scorer` (``Scorer``).
"""
