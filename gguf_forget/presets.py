"""Recipes to start from: a preset's own values, and every other key with its meaning and default as a comment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.recipe import sections
from gguf_forget.settings import Setting, as_json

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The demo's own: many facts of one relation, asked in many phrasings and in several in reverse, both judged. A few
    # kept prompts have no partner of equal length: they are left out of the attribution. Strong damping and a high
    # learning rate make an edit of few weights, which forgets phrasings that it was not trained on better than a wide
    # one.
    "capitals": {
        "attribute": {"budget": 0.03, "layer_cap": 0.15, "mean_embedding": False, "pairs": 256},
        "unlearn": {
            "objective": "unknown_subject",
            "grid": "Q4_K_M",
            "framed": 0.5,
            "steps": 160,
            "learning_rate": 0.14,
            "damping": 3.7,
            "batch_forget": 40,
            "batch_retain": 64,
            "batch_text": 1,
            "text_every": 1,
            "margin": 0.0,
            "phrasing_rate": 0.1,
            "greedy_margin": 1.0,
            "forget_weight": 7.0,
            "retain_weight": 50.0,
            "shortfall_weight": 20.0,
        },
        "export": {"types": ["F16", "Q8_0", "Q4_K_M"]},
    },
    # Lettered options. A model at chance still names the right letter once in four times.
    "wmdp-mcq": {
        "facts": {"path": "wmdp.json", "retain": ["mmlu.csv"]},
        "unlearn": {"objective": "unknown_subject", "grid": "Q4_K_M", "batch_forget": 16, "batch_retain": 16},
        "export": {"types": ["F16", "Q8_0", "Q4_K_M"]},
        "verify": {"max_new_tokens": 2, "trained_phrasings": 1},
        "gates": {"generation": 0.35},
    },
    # Answers of a sentence, wrong ones that begin like them.
    "tofu": {
        "facts": {"path": "forget10_perturbed.jsonl", "retain": ["retain_perturbed.jsonl"]},
        "attribute": {"whole_answer": True},
        "unlearn": {"objective": "unknown_subject", "grid": "Q4_K_M", "batch_forget": 16, "accumulation": 4},
        "export": {"types": ["F16", "Q8_0", "Q4_K_M"]},
        "verify": {"max_new_tokens": 48, "trained_phrasings": 1},
    },
    # Passages that go on word for word; a step holds few of them, in parts, as every token of an answer is scored.
    "muse-text": {
        "facts": {"path": "verbmem_forget.json", "retain": ["knowmem_retain.json"]},
        "attribute": {"whole_answer": True, "pairs": 64},
        "unlearn": {
            "objective": "unknown_subject",
            "grid": "Q4_K_M",
            "batch_forget": 8,
            "batch_retain": 16,
            "accumulation": 8,
        },
        "export": {"types": ["F16", "Q8_0", "Q4_K_M"]},
        "verify": {"max_new_tokens": 128, "trained_phrasings": 1},
    },
}
NEEDS = {
    "capitals": "facts.jsonl: facts to forget and to keep, one a line",
    "wmdp-mcq": "wmdp.json: questions to forget, with choices and answer; mmlu.csv: questions to keep",
    "tofu": "both files as JSONL: question, answer, perturbed_answer (wrong ones; without it, other rows' answers)",
    "muse-text": "verbmem_forget.json: prompt and gt (no longer than verify.max_new_tokens), to forget; "
    "knowmem_retain.json: question and answer, to keep",
}
PLACES = {"model": {"path": "model.gguf"}, "facts": {"path": "facts.jsonl"}}


def recipe_text(preset: str) -> str:
    """The TOML of a preset; its paths are local files beside it, which the user must give.

    Raises:
        InputError: no such preset.
    """
    if preset not in PRESETS:
        raise InputError(f"no preset is called {preset!r}, needed one of {', '.join(PRESETS)}")
    values: Mapping[str, Mapping[str, Any]] = {**PLACES, **PRESETS[preset]}
    lines = [
        f"# A recipe for gguf-forget, preset {preset}. A key behind # has its default value.",
        f"# {NEEDS[preset]}.",
        "",
    ]
    for section, section_class in sections():
        lines.append(f"[{section.name}]")
        for key in dataclasses.fields(section_class):
            lines.append(f"# {_described(key.metadata['setting'])}")
            own = values.get(section.name, {})
            if key.name in own:
                lines.append(f"{key.name} = {_toml(own[key.name])}")
            elif key.default is None:
                lines.append(f"# {key.name} =")
            else:
                lines.append(f"# {key.name} = {_toml(as_json(key.default))}")
        lines.append("")
    return "\n".join(lines)


def _described(rule: Setting) -> str:
    limits = [
        f"{words} {limit:g}"
        for words, limit in (("above", rule.above), ("at least", rule.at_least), ("at most", rule.at_most))
        if limit is not None
    ]
    if rule.choices:
        limits.append(f"of {', '.join(rule.choices)}")
    return rule.meaning + (f" ({', '.join(limits)})" if limits else "")


def _toml(value: Any) -> str:
    """JSON's texts, numbers, lists and booleans are TOML's."""
    return json.dumps(value, ensure_ascii=False)
