"""gguf_forget: make a language model forget facts, ship it as a GGUF, check it there.

The names below are the public Python API. Each is imported when it is first used, so that
``import gguf_forget`` and ``gguf-forget --help`` stay fast and load neither torch nor llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_forget.checkpoint.open import open_model, open_tokenizer
    from gguf_forget.circuit.attribution import Attribution, Selection, attribute
    from gguf_forget.circuit.divergence import Divergence, divergence
    from gguf_forget.circuit.edges import EdgeScores, score_edges
    from gguf_forget.circuit.faithfulness import faithfulness
    from gguf_forget.circuit.neurons import NeuronScores, score_neurons
    from gguf_forget.circuit.nodes import NodeScores, score_nodes
    from gguf_forget.circuit.patching import ablation_effects, patched_metrics, patching_effects
    from gguf_forget.circuit.selection import Circuit, random_circuit, select_neurons
    from gguf_forget.errors import EvaluationError, GgufForgetError, InputError, LlamaError, UnsupportedError
    from gguf_forget.facts.corruption import Pair, Pairs, build_pairs
    from gguf_forget.facts.schema import Fact, read_facts
    from gguf_forget.facts.tokens import encode_facts

__version__ = "0.1.0"

__all__ = [
    "Attribution",
    "Circuit",
    "Divergence",
    "EdgeScores",
    "EvaluationError",
    "Fact",
    "GgufForgetError",
    "InputError",
    "LlamaError",
    "NeuronScores",
    "NodeScores",
    "Pair",
    "Pairs",
    "Selection",
    "UnsupportedError",
    "__version__",
    "ablation_effects",
    "attribute",
    "build_pairs",
    "divergence",
    "encode_facts",
    "faithfulness",
    "open_model",
    "open_tokenizer",
    "patched_metrics",
    "patching_effects",
    "random_circuit",
    "read_facts",
    "score_edges",
    "score_neurons",
    "score_nodes",
    "select_neurons",
]

# Public name -> module that defines it.
_DEFINED_IN = {
    "Attribution": "gguf_forget.circuit.attribution",
    "Circuit": "gguf_forget.circuit.selection",
    "Divergence": "gguf_forget.circuit.divergence",
    "EdgeScores": "gguf_forget.circuit.edges",
    "EvaluationError": "gguf_forget.errors",
    "Fact": "gguf_forget.facts.schema",
    "GgufForgetError": "gguf_forget.errors",
    "InputError": "gguf_forget.errors",
    "LlamaError": "gguf_forget.errors",
    "NeuronScores": "gguf_forget.circuit.neurons",
    "NodeScores": "gguf_forget.circuit.nodes",
    "Pair": "gguf_forget.facts.corruption",
    "Pairs": "gguf_forget.facts.corruption",
    "Selection": "gguf_forget.circuit.attribution",
    "UnsupportedError": "gguf_forget.errors",
    "ablation_effects": "gguf_forget.circuit.patching",
    "attribute": "gguf_forget.circuit.attribution",
    "build_pairs": "gguf_forget.facts.corruption",
    "divergence": "gguf_forget.circuit.divergence",
    "encode_facts": "gguf_forget.facts.tokens",
    "faithfulness": "gguf_forget.circuit.faithfulness",
    "open_model": "gguf_forget.checkpoint.open",
    "open_tokenizer": "gguf_forget.checkpoint.open",
    "patched_metrics": "gguf_forget.circuit.patching",
    "patching_effects": "gguf_forget.circuit.patching",
    "random_circuit": "gguf_forget.circuit.selection",
    "read_facts": "gguf_forget.facts.schema",
    "score_edges": "gguf_forget.circuit.edges",
    "score_neurons": "gguf_forget.circuit.neurons",
    "score_nodes": "gguf_forget.circuit.nodes",
    "select_neurons": "gguf_forget.circuit.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_DEFINED_IN))
