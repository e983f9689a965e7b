"""The one door to llama.cpp: the quantizer that decides tensor types, and the scorer that runs a GGUF.

Only the modules of this package import ``llama_cpp``, and only inside functions: importing
:mod:`gguf_forget.llama` loads nothing heavy. See :mod:`.library` (loading, logs), :mod:`.quantizer`
(``quantize``, ``plan``), :mod:`.scorer` (``Scorer``) and :mod:`.child` (``IsolatedScorer``, the same in a process of
its own). Under the scorer: :mod:`.session` (the model and its cache), :mod:`.vocabulary` and :mod:`.chat` (text),
:mod:`.waves` and :mod:`.generation` (what is decoded together), :mod:`.logits` (what is kept of it). Under the child:
:mod:`.process` (this side) and :mod:`.worker` (the other).
"""
