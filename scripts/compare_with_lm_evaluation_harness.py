#!/usr/bin/env python3
"""The same multiple-choice questions through lm-evaluation-harness and through ours: the same accuracy?

    scripts/compare_with_lm_evaluation_harness.py --harness-python PYTHON --json FILE [--model MODEL] [--facts FILE] …

The harness (EleutherAI's `lm_eval`, tried with 0.4.13) scores the model in float32 with transformers; ours scores the
F32 GGUF with llama.cpp. Both get the same texts: for every fact drawn, its first held-out phrasing as a cloze (each
answer by itself continues the prompt), and the same as a multiple choice with lettered options, permuted with a fixed
seed. PYTHON is the interpreter of an environment of its own, in which `pip install torch==2.13.0 lm_eval transformers
accelerate gguf` was run: the harness is no dependency of this project.

MODEL is a GGUF (the demo's by default; the harness reads the F32 GGUF with transformers' `gguf_file`) or a Hugging Face
directory (which llama.cpp's converter turns into the GGUF).

The harness' accuracy `acc` takes the option with the highest sum of log-probabilities, `acc_norm` that with the highest
sum a character; both are computed here by the same definitions. (Our own length-normalised accuracy divides by tokens
and is another figure.) For every item the JSON has
each option's scores, their largest difference in nats, both picks and the margin between them. Float32 arithmetic in
another order explains 0.001 nats: an item whose scores agree to that is a tie where the picks differ, and one whose
scores do not is counted as not agreeing.

Exit codes: 0 the scores of every item agree; 1 some do not; 2 a wrong argument or an unusable harness.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from harness_comparison.command import main
    except ModuleNotFoundError as error:
        print(f"error: {error}; run this with the project's own Python, .venv/bin/python", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(__doc__))
