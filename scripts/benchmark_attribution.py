#!/usr/bin/env python3
"""Time and memory of edge attribution (EAP-IG, inputs), beside the public reference on the same work.

    scripts/benchmark_attribution.py --json FILE [--reference DIR] [--reference-python PYTHON] …

The work: random float32 models of the sizes of GPT-2 small and SmolLM2-135M with the same weights on both sides,
the same pairs of 16 tokens, m = 5 integration steps, the same metric (answer's logit minus the distractors' mean
logit), the same batches, the same number of threads. The reference is a checkout of hannamw/EAP-IG, which is not
on the package index; it wants an environment of its own: transformer-lens 2.16.1, transformers < 5, datasets < 4,
pyarrow < 20, pandas < 3, and the same torch as here. It is used unchanged, on the CPU. Without one, ours is timed
alone.

Each side of each model is a process of its own. They are timed in turn, run by run, after one run that is not
counted. Processor time (all threads together) says more than the clock when the machine has other work. Peak
memory is the largest resident size while scores are computed: in all (interpreter, libraries and model included),
and above what was resident once the model was loaded. The headline figures, `speedup`, `peak_memory_ratio` and
`correlation` of the JSON, are by the clock, of the whole process, over all edges, and the worst of the models.

Where the definitions of an edge coincide, and where they do not:

- Integration points. The reference takes left ends of the intervals, k / m, ours the midpoints, (k + ½) / m. For
  the comparison it is given the midpoints, which is one number in its code and costs the same; the correlation
  with its own points is shown beside.
- Sign and scale. The reference multiplies (corrupted − clean) by the gradient of a loss, which is −L here, and
  divides by the number of pairs: ours is (clean − corrupted) times the gradient of L, the mean over pairs.
- Grouped key-value heads. The reference copies a group's key and value heads for each query head and scores each
  copy; the sum over a group's copies is the edge to the group, and that is compared.
- Normalization weights, biases and the unembedding. transformer-lens can fold the first into the matrices and
  centre the others, which gives another model with the same outputs and other edges; all of that is off.
- Parameters' gradients. The reference computes them as well, and nothing reads them; ours does not. That is part
  of the difference in time and memory, not in scores.
- Nodes and neurons are not compared: until its pull request 23 the reference multiplied an MLP's output difference
  by the gradient at its input there (its issue 22). Edges were not affected.

Exit codes: 0 measured (whatever was found), 2 a wrong argument or an unusable reference.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from attribution_benchmark.command import main
    except ModuleNotFoundError as error:
        print(f"error: {error}; run this with the project's own Python, .venv/bin/python", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(__doc__))
