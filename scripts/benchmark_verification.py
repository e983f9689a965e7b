#!/usr/bin/env python3
"""How fast files are judged: the scorer beside the obvious way, and beside llama.cpp's own prompt processing.

    scripts/benchmark_verification.py --json FILE [--types Q8_0,Q4_K_M] [--rounds 3] [--threads N] …

The work: 644 cloze questions about capitals, four answers each (the demo's facts, phrasing by phrasing), scored as
Σ log p of the answer's tokens; and 1,273 multiple-choice questions of the shape of WMDP (a question and four choices
of random words after one heading, the four letters as answers). The model is the demo's, SmolLM2-135M-Instruct,
quantized by llama.cpp from the file in its package.

Three sides, each in a process of its own, timed in turn, round by round; medians are shown.

- ours: `gguf_forget.llama.scorer.Scorer` with its defaults, one call.
- one by one: `llama_cpp.Llama(logits_all=True)` with its defaults, one question and answer after the other, and the
  log-softmax of the rows that matter, nothing sorted. What a script would do.
- prompt processing: `llama_decode` of 512 tokens with llama.cpp's defaults and logits of the last token alone, which is
  what llama-bench calls pp512; and again with logits of as large a share of the tokens as the questions need. The
  output layer is a fifth of this model's arithmetic, so the first is more than any scorer can reach there.

Opening the file, tokenizing and a first call are outside of every timing. `unique tokens` are the nodes of the prefix
tree over all questions and answers: what must be computed at least. Memory is the largest resident size of the scoring
process, the mapped model included.

The headline figures of the JSON are the worst of the types: `speedup_over_logits_all` (one by one / ours, by the
clock), `share_of_prompt_processing` (unique tokens a second / pp512 tokens a second) and `peak_memory_bytes`.

The scores are compared as well: on the F32 file with one sequence at a time (same attention, float32 cache), where
only the order of additions differs; and on each quantized file, where llama.cpp rounds the activations to 8 bits, so
that the last bit of a sum can become a step of the grid, and a float16 cache (its default) moves many of them.

Exit codes: 0 measured (whatever was found), 2 a wrong argument or a missing model.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from verification_benchmark.command import main
    except ModuleNotFoundError as error:
        print(f"error: {error}; run this with the project's own Python, .venv/bin/python", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(__doc__))
