#!/usr/bin/env python3
"""Whether forgetting holds on the shipped files: the method beside published baselines, ablations and controls.

    scripts/benchmark_forgetting.py --json FILE [--quick] [--seeds 5] [--methods a,b] [--formats A,B] [--widened] …

The model is the demo's, SmolLM2-135M-Instruct, which forgets the capitals of Europe (`--widened`: the same function
768 wide; `--recipe FILE`: a model and facts of your own). The original, its circuit and the facts are shared by all
seeds and methods; a seed decides the draws of training. Every file is asked by llama.cpp, on held-out phrasings
unless a row says otherwise; a difference is to llama.cpp's own quantization of the original of the same type.

Ours ships bin-aware, baselines as llama.cpp rounds them. Methods: see scripts/forgetting_benchmark/methods.py.

Each row shows the mean over seeds with its 95 % interval (Student's t; none for one seed), the bar, and whether it is
met. The bars are those of the project's own goal, and none was tuned on the held-out phrasings. "PTQ gap" is the figure
minus that of the method's own F16 file. Perplexity may not rise at all at 4 bits and below, by 1 % above. Circuit
attribution divergence (L1, ours) is taken on the file of the trained grid, beside that of the random circuit;
relearning counts the steps of training on a quarter of the forgotten facts until half of the lost accuracy on the
others is back, beside NPO's. Time is that of the circuit, of training and of making the files; of a training that was
interrupted only the last part is in it.

A stop loses nothing: every (seed, method, format) keeps its own JSON in the work folder (`--work`, by default the
JSON's name with `.work`), and what is there and unchanged is not done again. Model files are made in a temporary
folder of it and removed once they are asked: about 3 GB of room are needed.

`--quick`: one seed, three methods, F16, Q8_0 and Q4_K_M, few samples.

NF4, bitsandbytes' four bits (its levels and blocks, in numpy), is asked as well: its weights in half precision, through
llama.cpp.

Exit codes: 0 measured (whatever was found), 2 a wrong argument or a missing model, 130 interrupted.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from forgetting_benchmark.command import main
    except ModuleNotFoundError as error:
        print(f"error: {error}; run this with the project's own Python, .venv/bin/python", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(__doc__))
