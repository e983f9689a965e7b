"""The harness' side. Runs in the harness' own environment: nothing of this project is imported.

    python harness.py ITEMS OUT MODEL_ARGUMENTS

ITEMS is JSON Lines with ``query``, ``choices`` and ``gold``; MODEL_ARGUMENTS a JSON object for its class ``HFLM``.
OUT gets ``{"versions", "accuracy", "items": [{"acc", "acc_norm", "log_probabilities"}, …]}``, items in order.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

TASK = "compared_items"


def main() -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    items, out, arguments = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    found = lm_eval.simple_evaluate(
        model=HFLM(**arguments), tasks=[task], num_fewshot=0, log_samples=True, bootstrap_iters=0
    )
    samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
    document = {
        "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")},
        "accuracy": {name: found["results"][TASK][f"{name},none"] for name in ("acc", "acc_norm")},
        "items": [
            {
                "acc": sample["acc"],
                "acc_norm": sample["acc_norm"],
                "log_probabilities": [float(value) for value, _ in sample["filtered_resps"]],
            }
            for sample in samples
        ],
    }
    out.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
