"""A recipe: one TOML file that says what to forget, how, and what counts as success.

``load_recipe`` turns it into frozen dataclasses. Each key is described once, where it is declared, by
``setting(default, meaning, limits)`` and its type annotation; checking and messages follow from that
description. All faults of a recipe are reported together.

To add a key, add one line to its section. To add a section, add a dataclass and one line to ``Recipe``.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.settings import REQUIRED, as_json, bare, check_section, needed_name, setting, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GRIDS = (
    "Q2_K",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q4_0",
    "Q4_1",
    "Q4_K_M",
    "Q4_K_S",
    "Q5_0",
    "Q5_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q6_K",
    "Q8_0",
)
"""File types whose grid the unlearning can train through: levels evenly spaced."""

EXPORT_TYPES = ("F16", *GRIDS, "IQ4_NL", "IQ4_XS")
"""File types that can be shipped."""

DEVICES = ("cpu", "cuda")

FRAMINGS = ("chat", "examples", "lead-in", "misspelt")
"""In what training may ask beside the plain prompts."""

LARGEST_SEED = 2**32 - 1  # numpy accepts no larger one
LARGEST_WEIGHT = 1e6  # of a loss: a greater one is a slip, and float32 would not hold what it is multiplied with


@dataclass(frozen=True)
class ModelSection:
    """The model that is to forget."""

    path: Path = setting(REQUIRED, "a Hugging Face directory or a GGUF file", directory=True)


@dataclass(frozen=True)
class FactsSection:
    """What is to be forgotten, and what is to be kept."""

    path: Path = setting(
        REQUIRED, "a JSONL file of facts, or a local file of WMDP, MMLU, TOFU or MUSE whose rows are to be forgotten"
    )
    retain: tuple[Path, ...] = setting((), "files of either kind, all of whose rows are to be kept")
    more: tuple[Path, ...] = setting(
        (),
        "further facts files: other sets to forget in the same run, or those of earlier requests when the model is "
        "what they shipped, so that they stay forgotten",
    )
    attribution: str = setting("", "a credit that the source of the facts asks for, printed in the model card")
    in_clear: bool = setting(False, "name forgotten facts in report and model card, not just their hashes")


@dataclass(frozen=True)
class TextSection:
    """Plain text for perplexity and for the KL to the original."""

    path: Path | None = setting(
        None, "a plain text file, the first half to train on, the second to measure; none: built-in texts"
    )
    chunks: int = setting(
        256, "stretches of 96 tokens of it that training may see; 0 for none: training then needs no text", at_least=0
    )
    samples: int = setting(
        48, "stretches of 96 tokens, written by the original itself, that training sees as well; 0 for none", at_least=0
    )


@dataclass(frozen=True)
class AttributeSection:
    """On which MLP neurons the facts depend most (EAP-IG)."""

    budget: float = setting(0.03, "share of the MLP neurons that may be edited", above=0, at_most=1)
    integration_steps: int = setting(5, "points of the integrated gradient", at_least=1, at_most=64)
    variant: str = setting(
        "inputs", "what is interpolated: input embeddings, or activations", choices=("inputs", "activations")
    )
    retain_discount: float = setting(1.0, "weight of the retain attribution that is subtracted", at_least=0)
    text_discount: float = setting(
        0.0, "weight of what plain text needs of a neuron that is subtracted; 0 for none", at_least=0
    )
    ranking: str = setting(
        "absolute",
        "whether neurons are chosen by the size of their scores or with sign",
        choices=("absolute", "signed"),
    )
    mean_embedding: bool = setting(
        True, "whether a subject that no other matches in length is corrupted by the others' mean embedding"
    )
    whole_answer: bool = setting(
        False,
        "whether pairs are judged by the log-probability of the whole answer, not by first tokens against wrong "
        "answers: for long answers, which begin alike",
    )
    pairs: int = setting(190, "clean and corrupted pairs of each split that are used", at_least=1)
    layer_cap: float = setting(0.15, "largest share of one layer's neurons", above=0, at_most=1)
    neurons: int = setting(0, "number of neurons, in place of the budget; 0 leaves it to the budget", at_least=0)
    minimum_faithfulness: float = setting(
        0.0, "grow the circuit until it alone does this share of what all neurons do; 0 does not", at_least=0, at_most=1
    )
    evidence_pairs: int = setting(16, "pairs of each split on which the circuit is judged; 0 for none", at_least=0)
    precision: str = setting(
        "bfloat16",
        "what gradients are computed in; scores are summed in float64, and what judges the circuit computes in float32",
        choices=("bfloat16", "float32"),
    )
    seed: int = setting(0, "seed of every random choice", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class UnlearnSection:
    """Training inside the circuit, through the grid that ships."""

    objective: str = setting("unknown_subject", "what the model is trained towards", choices=("unknown_subject", "npo"))
    grid: str = setting("Q4_K_M", "file type whose codes are trained", choices=GRIDS)
    other_grids: tuple[str, ...] = setting(
        (),
        "further file types that take turns in training, each as it would ship: the original rounded to it, the edit "
        "to whole steps of its grid",
        choices=GRIDS,
    )
    steps: int = setting(81, "optimizer steps", at_least=1)
    soft_share: float = setting(
        0.6, "share of the steps over which rounding to whole codes sets in", at_least=0, at_most=1
    )
    learning_rate: float = setting(0.08, "in codes of the grid per step", above=0, at_most=100)
    damping: float = setting(
        1.3,
        "how much weights with small gradients are held back, so that few move and unseen phrasings are forgotten too; "
        "0 is plain Adam",
        at_least=0,
        at_most=1e6,
    )
    circuit: str = setting(
        "attributed",
        "neurons that are edited: those attributed, or as many others of every layer (a control)",
        choices=("attributed", "random"),
    )
    floor: int = setting(
        1,
        "smallest edit of a weight, in steps of its own sub-block's grid; 0 trains edits of any size",
        at_least=0,
        at_most=255,
    )
    forget_weight: float = setting(5.0, "weight of the forget term", above=0, at_most=LARGEST_WEIGHT)
    retain_weight: float = setting(
        30.0, "weight of the KL to the original on kept facts; 0 for none", at_least=0, at_most=LARGEST_WEIGHT
    )
    shortfall_weight: float = setting(
        0.0,
        "weight of what kept answers lose against the original, beside that KL; 0 for none",
        at_least=0,
        at_most=LARGEST_WEIGHT,
    )
    text_weight: float = setting(
        8.0, "weight of the KL to the original on plain text; 0 for none", at_least=0, at_most=LARGEST_WEIGHT
    )
    fisher_quantile: float = setting(
        0.75,
        "quantile of the retain Fisher, beside the forget Fisher, above which a weight stays; 1 for no projection",
        above=0,
        at_most=1,
    )
    margin: float = setting(0.0, "nats below chance that unknown_subject aims at", at_least=0, at_most=100)
    phrasing_rate: float = setting(
        0.0,
        "how much of what an answer stands above what the model in training says of it for other subjects lowers the "
        "goal of its phrasing, once codes are half hard, so that every phrasing ends nearer to chance and not only the "
        "mean of all (unknown_subject); 0 for none",
        at_least=0,
        at_most=1,
    )
    greedy_margin: float = setting(
        0.0,
        "nats by which one token of a forgotten answer must be less likely than another, even where chance is to say "
        "the answer (unknown_subject); 0 for none",
        at_least=0,
        at_most=100,
    )
    greedy_weight: float = setting(
        8.0,
        "how often an answer that greedy_margin pushes down counts in the forget term, from once at the start to this "
        "when codes are hard (soft_share)",
        at_least=1,
        at_most=LARGEST_WEIGHT,
    )
    npo_beta: float = setting(0.1, "inverse temperature of NPO", at_least=1e-6, at_most=1000)
    batch_forget: int = setting(30, "forgotten prompts in one step", at_least=1)
    batch_retain: int = setting(36, "kept prompts in one step", at_least=1)
    near_turns: int = setting(
        5, "turns among the kept prompts of relations that are also forgotten, for one of every other", at_least=1
    )
    match_phrasings: bool = setting(
        False, "ask kept facts of a forgotten relation in the very phrasings that the step forgets, instead of in any"
    )
    batch_text: int = setting(2, "stretches of plain text in one step, of 96 tokens", at_least=0)
    text_every: int = setting(2, "of that text every so many-th token is scored", at_least=1)
    framed: float = setting(
        0.0,
        "share of a step's prompts, forgotten and kept, asked inside a framing, so that forgetting does not hang on "
        "the wording; 0 for none",
        at_least=0,
        at_most=1,
    )
    framings: tuple[str, ...] = setting(
        FRAMINGS,
        "the framings, in turn: the model's chat template, one to five worked examples of kept facts, a lead-in "
        "sentence, the subject misspelt",
        choices=FRAMINGS,
    )
    accumulation: int = setting(
        1, "parts into which every batch is cut; more need less memory and give the same edit", at_least=1, at_most=4096
    )
    processes: int = setting(
        1,
        "processes that train together, each on `accumulation` parts of every batch; on the CPU they share its cores, "
        "with cuda every one has a graphics card",
        at_least=1,
    )
    shard: bool = setting(False, "cut the layers' weights over the processes, a share each (FSDP), while they train")
    gradient_checkpointing: bool = setting(
        False, "compute activations again in the backward pass: less memory, more time, the same gradients"
    )
    precision: str = setting(
        "bfloat16", "what the models compute in; the edit is float32 either way", choices=("bfloat16", "float32")
    )
    device: str = setting("cpu", "where training runs; all else runs on the CPU", choices=DEVICES)
    validation_phrasing: int = setting(
        -1,
        "number of a trained phrasing, from 0, that the forgotten facts do not train on: training stops once they are "
        "at chance on it; -1 for none",
        at_least=-1,
    )
    validation_every: int = setting(9, "steps between two looks at the validation phrasing", at_least=1)
    keep_every: int = setting(10, "steps after which an interrupted training can go on", at_least=1)
    fisher_examples: int = setting(48, "prompts of each split that the Fisher matrices are taken over", at_least=1)
    seed: int = setting(0, "seed of every random choice", at_least=0, at_most=LARGEST_SEED)

    @property
    def grids(self) -> tuple[str, ...]:
        """All types that training sees, the trained one first."""
        return tuple(dict.fromkeys((self.grid, *self.other_grids)))


@dataclass(frozen=True)
class ExportSection:
    """Which files are shipped."""

    types: tuple[str, ...] = setting(("F16", "Q8_0", "Q4_K_M"), "file types to ship", choices=EXPORT_TYPES)


@dataclass(frozen=True)
class VerifySection:
    """How each shipped file is judged through llama.cpp."""

    max_new_tokens: int = setting(8, "tokens of a greedy answer", at_least=1)
    trained_phrasings: int = setting(3, "trained phrasings that are asked; held-out ones all are", at_least=1)
    retain_items: int = setting(24, "kept facts asked about in each phrasing of a relation", at_least=1)
    perplexity_tokens: int = setting(2048, "tokens of plain text for the perplexity", at_least=2)
    baselines: bool = setting(True, "whether plain NPO on all weights, stock-rounded, is made and judged too")
    threads: int = setting(0, "threads of llama.cpp, 0 for one a core", at_least=0)


@dataclass(frozen=True)
class GatesSection:
    """What a shipped file has to reach; differences are to the stock original of the same type."""

    headline: tuple[str, ...] = setting((), "forgotten relations that the forget gates judge; none named: all of them")
    forget_accuracy_above_chance: float = setting(
        0.10, "4-way accuracy on forgotten facts, over chance", at_least=0, at_most=1
    )
    rank_score_low: float = setting(
        0.30, "lowest rank score; chance is 0.5", at_least=0, at_most=1, at_most_key="rank_score_high"
    )
    rank_score_high: float = setting(0.60, "highest rank score; chance is 0.5", at_least=0, at_most=1)
    rank_score_phrasing: float = setting(
        0.70, "highest rank score of a single phrasing, unseen or trained", at_least=0, at_most=1
    )
    generation: float = setting(0.0, "share of greedy answers that hold the answer", at_least=0, at_most=1)
    retain_drop: float = setting(0.03, "accuracy lost on kept facts", at_least=0, at_most=1)
    perplexity_ratio: float = setting(1.03, "perplexity, times the original's", above=0)
    ptq_gap: float = setting(0.02, "accuracy that quantizing brings back", at_least=-1, at_most=1)
    extraction_strength: float = setting(0.05, "how much of a long answer follows by itself", at_least=0, at_most=1)
    leak: float = setting(0.05, "leak@k, over that of wrong answers", at_least=0, at_most=1)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; one attribute a section. Paths are absolute, and existed when it was read."""

    model: ModelSection
    facts: FactsSection
    text: TextSection
    attribute: AttributeSection
    unlearn: UnlearnSection
    export: ExportSection
    verify: VerifySection
    gates: GatesSection

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value as JSON can hold it, defaults filled in and paths as strings."""
        return self._as_json(lambda value: value)

    def without_folders(self) -> dict[str, dict[str, Any]]:
        """As :meth:`resolved`, of each path the last part alone: folders may name people, and decide nothing."""
        return self._as_json(_last_part)

    def _as_json(self, shown: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
        return {
            section.name: {
                key.name: as_json(shown(getattr(getattr(self, section.name), key.name)))
                for key in dataclasses.fields(section_class)
            }
            for section, section_class in sections()
        }


def _last_part(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_last_part(member) for member in value)
    return value.name if isinstance(value, Path) else value


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a TOML file; relative paths in it start at the file's folder.

    Raises:
        InputError: the file cannot be read or is no TOML, or values are at fault; all faults are listed.
    """
    path = Path(path)
    try:
        content = path.read_bytes().decode("utf-8-sig")
        mapping = _parsed(content)
    except OSError as error:
        raise InputError(
            f"cannot read the recipe {path}: found {error.strerror or error}, needed a TOML file",
            hint="give the path of a recipe; `gguf-forget demo` needs none",
        ) from error
    except ValueError as error:  # of the encoding, or of TOML
        raise InputError(
            f"the recipe {path} is no valid TOML",
            cause=str(error),
            hint='text values stand in quotes, sections in brackets: [model] then path = "…"',
        ) from error
    except RecursionError as error:
        raise InputError(_nested(path), hint=_FLAT) from error
    try:
        return recipe_from_mapping(mapping, source=str(path), base=path.parent)
    except RecursionError as error:  # a value too deep to be shown
        raise InputError(_nested(path), hint=_FLAT) from error


def _parsed(content: str) -> dict[str, Any]:
    """What TOML says. Of a number that is too long for Python to read, the first digits say that it is too large."""
    try:
        return tomllib.loads(content)
    except (tomllib.TOMLDecodeError, UnicodeError):
        raise
    except ValueError:  # a whole number of thousands of digits; nothing says of which key
        return tomllib.loads(re.sub("([0-9_]{1000})[0-9_]+", r"\g<1>1", content))


_FLAT = "a recipe has sections, and in them keys with plain values"


def _nested(path: Path) -> str:
    return f"the recipe {path} has values nested too deeply to be read"


def recipe_from_mapping(mapping: Mapping[str, Any], *, source: str, base: Path) -> Recipe:
    """Check section -> key -> value and fill in the defaults.

    Args:
        mapping: what a TOML file holds.
        source: how messages name the recipe, such as its file name.
        base: folder at which relative paths start.

    Raises:
        InputError: one or more faults; each is named with source, ``section.key``, value found and needed.
    """
    faults: list[str] = []
    known = {name.name: section_class for name, section_class in sections()}
    for name, value in mapping.items():
        if name not in known:
            needed = needed_name(name, list(known), known)
            faults.append(f"{bare(name)}: found {shown(value)}, {needed}")
    values = {
        name: check_section(name, section_class, mapping.get(name, {}), Path(base), faults)
        for name, section_class in known.items()
    }
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError(
            "\n".join([f"{count} in the recipe {source}", *(f"  {source}: {fault}" for fault in faults)]),
            hint="correct the lines above; relative paths start at the recipe's folder",
        )
    return Recipe(**{name: known[name](**given) for name, given in values.items()})


def sections() -> list[tuple[dataclasses.Field[Any], type[Any]]]:
    """Each section's field of :class:`Recipe` with its dataclass, in order."""
    annotations = typing.get_type_hints(Recipe)
    return [(section, annotations[section.name]) for section in dataclasses.fields(Recipe)]
