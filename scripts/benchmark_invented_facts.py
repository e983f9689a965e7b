#!/usr/bin/env python3
"""Forgetting judged against its gold standard: a model that never learned what is to be forgotten.

    scripts/benchmark_invented_facts.py --json FILE [--folder DIR] [--seed N] …

A small llama (4 layers of 256, started at random) is taught the lives of invented people: name, trade, birthplace,
instrument, teacher, in four phrasings each and as one short biography. A twin is taught the same without the people
who are to be forgotten, and a second twin from another start: what two models that never knew look like beside each
other is the noise of every figure here. Then `gguf-forget run` makes the taught model forget those people, and every
file is asked through llama.cpp: the taught one, the unlearned ones as they ship, the stock-rounded ones, the plain NPO
baseline and the twins.

For each file, with the first twin in the same type as the gold standard:

- accuracy of four answers on the phrasing that unlearning never saw, for people to forget and to keep;
- truth ratio (TOFU, arXiv 2401.06121): mean probability of wrong answers over that of the right one, per token, on the
  same phrasing; and forget quality, the p-value of the Kolmogorov-Smirnov test between the file's truth ratios and
  the twin's: above 0.05 the two cannot be told apart;
- PrivLeak (MUSE, arXiv 2407.06460): the chance that a biography which no model ever saw has a higher Min-K % than one
  to forget (AUC), relative to the twin's; 0 is ideal, -100 % is known by heart, far above 0 the text is avoided;
- how much of the answers to forget is still said token by token (exact memorisation).

The JSON holds `rows`, one a file, and `seconds`. A few minutes on 2 cores.

Exit codes: 0 measured (whatever was found), 2 a wrong argument, 3 a file could not be judged.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from invented_facts_benchmark.command import main
    except ModuleNotFoundError as error:
        print(f"error: {error}; run this with the project's own Python, .venv/bin/python", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(__doc__))
