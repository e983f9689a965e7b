"""From the figures of every seed to rows with a mean, an interval, a bar and whether it is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Figures = Mapping[str, float | None]

# 97.5 % quantiles of Student's t by degrees of freedom, for 2 to 10 seeds.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MOST_SEEDS = len(STUDENT) + 1
FINE = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1")  # more than 4 bits


@dataclass(frozen=True)
class Summary:
    """Mean over seeds and its 95 % interval; ``low`` and ``high`` None for one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def summarise(values: Sequence[float]) -> Summary | None:
    if not values:
        return None
    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return Summary(mean, None, None, 1)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = STUDENT[count - 1] * deviation / math.sqrt(count)
    return Summary(mean, mean - half, mean + half, count)


def _own(name: str) -> Callable[[Figures, Figures, Figures], float | None]:
    return lambda file, _original, _full: file.get(name)


def _less(name: str) -> Callable[[Figures, Figures, Figures], float | None]:
    """Minus the original of the same type."""
    return lambda file, original, _full: _difference(file.get(name), original.get(name))


def _gap(name: str) -> Callable[[Figures, Figures, Figures], float | None]:
    """Minus the method's own F16 file, of which itself nothing is said."""
    return lambda file, _original, full: None if file is full else _difference(file.get(name), full.get(name))


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _ratio(file: Figures, original: Figures, _full: Figures) -> float | None:
    one, other = file.get("perplexity"), original.get("perplexity")
    return None if one is None or not other else one / other


@dataclass(frozen=True)
class Row:
    """One line: ``value`` of (file, original of its type, the method's F16 file); ``met`` of a summary and a type."""

    name: str
    bar: str
    value: Callable[[Figures, Figures, Figures], float | None]
    met: Callable[[Summary, str], bool]


def _at_most(limit: float) -> Callable[[Summary, str], bool]:
    return lambda found, _type: found.mean <= limit + 1e-9


def _at_least(limit: float) -> Callable[[Summary, str], bool]:
    return lambda found, _type: found.mean >= limit - 1e-9


def _between(low: float, high: float) -> Callable[[Summary, str], bool]:
    return lambda found, _type: low - 1e-9 <= found.mean <= high + 1e-9


def _no_gap(found: Summary, _type: str) -> bool:
    return found.mean <= 1e-9 and (found.high is None or found.high <= 0.02 + 1e-9)


def _perplexity(found: Summary, file_type: str) -> bool:
    return found.mean <= (1.01 if file_type in FINE else 1.00) + 1e-9


ROWS: tuple[Row, ...] = (
    Row("forget, 4-way accuracy", "≤ 0.30", _own("forget_accuracy"), _at_most(0.30)),
    Row("forget, rank score", "0.45 – 0.55", _own("forget_rank"), _between(0.45, 0.55)),
    Row("reverse, rank score", "0.42 – 0.58", _own("reverse_rank"), _between(0.42, 0.58)),
    Row("fresh phrasings, 4-way accuracy", "≤ 0.30", _own("fresh_accuracy"), _at_most(0.30)),
    Row("fresh phrasings, rank score", "0.45 – 0.55", _own("fresh_rank"), _between(0.45, 0.55)),
    Row("fresh phrasings, reverse", "0.42 – 0.58", _own("fresh_reverse_rank"), _between(0.42, 0.58)),
    Row("same subjects, rank − original", "≥ −0.02", _less("same_subjects_rank"), _at_least(-0.02)),
    Row("same subjects, 4-way − original", "≥ −0.02", _less("same_subjects_accuracy"), _at_least(-0.02)),
    Row("greedy answers, both ways", "0", _own("greedy"), _at_most(0.0)),
    Row("leak@k", "≤ 0.05", _own("leak"), _at_most(0.05)),
    Row("leak@k − wrong answers'", "≤ 0.05", _own("leak_over_wrong"), _at_most(0.05)),
    Row("PTQ gap, accuracy, all draws", "≤ 0, end ≤ 0.02", _gap("forget_accuracy_all_draws"), _no_gap),
    Row("PTQ gap, rank score", "≤ 0, end ≤ 0.02", _gap("forget_rank"), _no_gap),
    Row("near, trained − original", "≥ 0", _less("near_trained"), _at_least(0.0)),
    Row("near, held out − original", "≥ 0", _less("near_held_out"), _at_least(0.0)),
    Row("near, fresh − original", "≥ 0", _less("near_fresh"), _at_least(0.0)),
    Row("far, trained − original", "≥ 0", _less("far_trained"), _at_least(0.0)),
    Row("far, held out − original", "≥ 0", _less("far_held_out"), _at_least(0.0)),
    Row("perplexity ÷ original", "≤ 1.00; 1.01 > 4 bit", _ratio, _perplexity),
)


def method_rows(
    method: str,
    results: Mapping[tuple[str, int, str], Figures],
    originals: Mapping[str, Figures],
    seeds: Sequence[int],
    types: Sequence[str],
) -> list[dict[str, Any]]:
    """One record a row and type: summary, bar, met (None where nothing was measured). A row needs every seed."""
    records = []
    for row in ROWS:
        for file_type in types:
            values = []
            for seed in seeds:
                file, full = (results.get((method, seed, each)) for each in (file_type, "F16"))
                original = originals.get(file_type)
                if file is not None and original is not None:
                    value = row.value(file, original, full or {})
                    values += [] if value is None else [value]
            found = summarise(values) if len(values) == len(seeds) else None
            records.append(
                {
                    "row": row.name,
                    "type": file_type,
                    "bar": row.bar,
                    "met": None if found is None else row.met(found, file_type),
                    **(asdict(found) if found else {"mean": None, "low": None, "high": None, "seeds": len(values)}),
                }
            )
    return records


def whole_rows(
    method: str, about: Mapping[tuple[str, int], Mapping[str, Any]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """What is said of a method as a whole: divergence and relearning beside their controls, share changed, time.

    The divergence is that from the stock file of the same type. A pupil that is not back within the steps allowed
    counts as one step more: the ratio is then a lower bound, and an upper one where it is NPO's. One that had lost
    nothing is back after 0 steps.
    """

    def of(name: str, seed: int, *keys: str) -> Any:
        value: Any = about.get((name, seed), {})
        for key in keys:
            value = (value or {}).get(key)
        return value

    def steps(name: str, seed: int) -> float | None:
        found = of(name, seed, "relearning")
        if not found:
            return None
        return found["within"] + 1 if found["steps"] is None else found["steps"]

    def divided(one: float | None, other: float | None) -> float | None:
        return None if one is None or not other else one / other

    rows: list[tuple[str, str, Callable[[int], float | None], Callable[[Summary, str], bool]]] = [
        (
            "divergence ÷ random circuit's",
            "> 2",
            lambda seed: divided(of(method, seed, "divergence", "l1"), of("random_circuit", seed, "divergence", "l1")),
            lambda found, _type: found.mean > 2,
        ),
        *(
            (
                f"relearning steps ÷ {whose}",
                "≥ 3",
                lambda seed, other=other: divided(steps(method, seed), steps(other, seed)),
                _at_least(3.0),
            )
            for whose, other in (("NPO's", "npo"), ("that on every phrasing", "npo_every_phrasing"))
        ),
        ("share of parameters edited", "≤ 0.03", lambda seed: of(method, seed, "share_changed"), _at_most(0.03)),
        ("time, s", "≤ 600", lambda seed: of(method, seed, "seconds"), _at_most(600.0)),
    ]
    records = []
    for name, bar, value, met in rows:
        values = [number for seed in seeds if (number := value(seed)) is not None]
        found = summarise(values) if len(values) == len(seeds) else None
        records.append(
            {
                "row": name,
                "bar": bar,
                "met": None if found is None else met(found, ""),
                **(asdict(found) if found else {"mean": None, "low": None, "high": None, "seeds": len(values)}),
            }
        )
    return records


def _cell(record: Mapping[str, Any]) -> str:
    if record["mean"] is None:
        return "–"
    mark = "✓" if record["met"] else "✗"
    mean = record["mean"]
    shown = f"{mean:.0f}" if abs(mean) >= 100 else f"{mean:.3f}"
    interval = "" if record["low"] is None else f" ±{record['high'] - mean:.3f}"
    return f"{shown}{interval} {mark}"


def render(document: Mapping[str, Any]) -> str:
    """The tables for a terminal: one part a method, a line a row, a column a file type."""
    types = document["types"]
    lines = [f"mean over {len(document['seeds'])} seed(s) ± half the 95 % interval; ✓ the bar is met, ✗ missed"]
    width = max(16, *(len(kind) + 2 for kind in types))
    for name, part in document["methods"].items():
        lines += ["", f"{name}: {part['meaning']}"]
        lines += [f"  could not be made or asked: {problem}" for problem in part["problems"]]
        lines.append(f"{'':32}{'bar':22}" + "".join(f"{kind:>{width}}" for kind in types))
        by_row: dict[str, dict[str, Mapping[str, Any]]] = {}
        for record in part["rows"]:
            by_row.setdefault(record["row"], {})[record["type"]] = record
        for row, cells in by_row.items():
            bar = next(iter(cells.values()))["bar"]
            lines.append(f"{row:32}{bar:22}" + "".join(f"{_cell(cells[kind]):>{width}}" for kind in types))
        lines += [f"{record['row']:32}{record['bar']:22}{_cell(record):>{width}}" for record in part["whole"]]
    return "\n".join(lines)
