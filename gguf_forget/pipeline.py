"""The story: the stages in order, each skipped when its inputs are unchanged and its files whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf_forget import __version__
from gguf_forget.errors import InputError
from gguf_forget.progress import Progress
from gguf_forget.recipe import Recipe, TextSection
from gguf_forget.run_directory import RunDirectory, StageResult, read_json
from gguf_forget.stages.machine import PACKAGE, code_hash, tool_versions, torch_device
from gguf_forget.stages.verdict_checks import check_judged, check_lengths, check_types
from gguf_forget.whole_file import sha256_file

STAGES = (
    "load",
    "stock",
    "facts",
    "agreement",
    "attribute",
    "unlearn",
    "export",
    "baseline",
    "verify",
    "report",
    "evidence",
)
BASELINE_TYPES = ("F32", "Q4_0")  # as trained, and as a plain export would ship it


@dataclass(frozen=True)
class Outcome:
    """Where the run is, what it decided (None when it stopped before the verdict), and the exit code."""

    folder: Path
    report: Mapping[str, Any] | None
    exit_code: int
    stages: tuple[str, ...]


class _Run:
    """One run under way: builds stages with their fingerprints and remembers their results."""

    def __init__(self, recipe: Recipe, directory: RunDirectory, progress: Progress) -> None:
        self.recipe = recipe
        self.directory = directory
        self.progress = progress
        self.versions = tool_versions()
        # Of the stages that read facts and judge: nothing of other code is handed on there, for one version has many
        # commits. The long ones between them follow from their inputs' bytes.
        self.code = code_hash(PACKAGE)
        self.done: dict[str, StageResult] = {}
        self.rebuilt = False

    def path(self, stage: str) -> Path:
        return self.done[stage].path

    def stage(
        self, name: str, build: Callable[[Path], object], *, after: tuple[str, ...] = (), **options: Any
    ) -> StageResult:
        """``options`` and the outputs of ``after`` decide the result; nothing else may."""
        upstream = {stage: self.done[stage].outputs_hash for stage in after}
        inputs = {"versions": self.versions, "options": options, "upstream": upstream}
        result = self.directory.stage(name, inputs, lambda out: _discard(build(out)))
        self.done[name] = result
        self.rebuilt |= not result.skipped
        self.progress.note(f"[{name}] {'unchanged, skipped' if result.skipped else 'done'}")
        return result


def _discard(_value: object) -> None:
    return None


def _input_hash(path: Path | None) -> str | None:
    return None if path is None else sha256_file(path)


def stages_until(until: str) -> tuple[str, ...]:
    """All stages up to and including ``until``. Raises InputError where there is none of that name."""
    if until not in STAGES:
        raise InputError(f"no stage is called {until!r}, needed one of {', '.join(STAGES)}")
    return STAGES[: STAGES.index(until) + 1]


def check_recipe(recipe: Recipe, until: str) -> None:
    """Raises InputError for what the recipe alone shows to end in no training, or in no verdict."""
    wanted = stages_until(until)
    if "unlearn" in wanted:
        from gguf_forget.stages.training_checks import check_parts

        check_parts(recipe.unlearn)
    if "report" in wanted:
        check_types(recipe.export.types)


def run(recipe: Recipe, folder: Path, progress: Progress, *, until: str = STAGES[-1]) -> Outcome:
    """Run every stage up to and including ``until``. Raises the errors of the stages; what was finished stays."""
    wanted = stages_until(until)
    check_recipe(recipe, until)
    if "unlearn" in wanted:
        torch_device(recipe.unlearn.device)  # before an hour of other stages
    with RunDirectory(folder) as directory:
        state = _Run(recipe, directory, progress)
        for name in wanted:
            _BUILDERS[name](state)
            if name == "load" and "attribute" in wanted:
                _check_circuit(state)
            if name == "facts" and "unlearn" in wanted:
                _check_facts(state, judged="report" in wanted)
        if "report" not in wanted:
            if state.rebuilt and (folder / "report").is_dir():
                progress.note(
                    f"report and evidence in {folder} are those of earlier files: gguf-forget report makes them anew"
                )
            return Outcome(folder, None, 0, tuple(state.done))
        report = read_json(state.path("report") / "report.json")
    return Outcome(folder, report, int(report["verdict"]["exit_code"]), tuple(state.done))


def _load(state: _Run) -> None:
    from gguf_forget.stages.load import load, model_hash

    model = state.recipe.model.path
    state.stage("load", lambda out: load(model, out, state.progress), model=model_hash(model), model_name=model.name)


def _stock(state: _Run) -> None:
    from gguf_forget.stages.load import quantize_stock

    recipe = state.recipe
    types = sorted({*recipe.export.types, *recipe.unlearn.grids, *_baseline_types(recipe), "F16"} - {"F32"})
    state.stage(
        "stock",
        lambda out: quantize_stock(state.path("load") / "template.gguf", types, out, state.progress),
        after=("load",),
        types=types,
    )


def _facts(state: _Run) -> None:
    from gguf_forget.facts.set_facts import is_question_set
    from gguf_forget.stages.facts import prepare_facts

    recipe = state.recipe
    options = {"perplexity_tokens": recipe.verify.perplexity_tokens, "seed": recipe.unlearn.seed}
    counts = {"chunk_count": recipe.text.chunks, "sample_count": recipe.text.samples}

    def build(out: Path) -> None:
        template = state.path("load") / "template.gguf"
        prepare_facts(
            template,
            recipe.facts.path,
            recipe.text.path,
            out,
            state.progress,
            retain=recipe.facts.retain,
            more=recipe.facts.more,
            **options,
            **counts,
        )

    hashes: dict[str, Any] = {"facts": _input_hash(recipe.facts.path), "text": _input_hash(recipe.text.path)}
    sets = [p.name for p in (recipe.facts.path, *recipe.facts.retain, *recipe.facts.more) if is_question_set(p)]
    if sets:
        hashes["sets"] = sets  # their rows are called as their file, whose ending says how it is read
    further: dict[str, Any] = {
        name: [_input_hash(path) for path in paths]
        for name, paths in (("retain", recipe.facts.retain), ("more", recipe.facts.more))
        if paths
    }
    # Named only where they are not the defaults, which results of earlier versions were made with.
    usual = TextSection()
    if (recipe.text.chunks, recipe.text.samples) != (usual.chunks, usual.samples):
        further |= counts
    state.stage("facts", build, after=("load",), code=state.code, **options, **hashes, **further)


def _check_circuit(state: _Run) -> None:
    """Whether the circuit's budget fits into the model, before the other stages."""
    from gguf_forget.checkpoint.open import outline
    from gguf_forget.stages.attribute import check_budget

    check_budget(outline(state.path("load") / "template.gguf"), state.recipe.attribute)


def _check_facts(state: _Run, *, judged: bool) -> None:
    """What training and verdict will need of the facts, before the circuit is looked for."""
    from gguf_forget.checkpoint.load import load_tokenizer
    from gguf_forget.stages.facts import load_facts
    from gguf_forget.stages.training_checks import check_facts

    facts, _ = load_facts(state.path("facts"))
    check_facts(state.recipe.unlearn, facts)
    if judged:
        check_judged(state.recipe.gates.headline, facts)
        tokenize = load_tokenizer(state.path("load") / "template.gguf")
        check_lengths(state.recipe.gates.headline, facts, tokenize, state.recipe.verify.max_new_tokens)


def _agreement(state: _Run) -> None:
    from gguf_forget.stages.verify import check_agreement

    def build(out: Path) -> None:
        template, f16 = state.path("load") / "template.gguf", state.path("stock") / "F16.gguf"
        check_agreement(template, f16, state.path("facts"), out, state.progress)

    state.stage("agreement", build, after=("load", "stock", "facts"), code=state.code)


def _attribute(state: _Run) -> None:
    from gguf_forget.stages.attribute import attribute

    options = state.recipe.attribute

    def build(out: Path) -> None:
        attribute(state.path("load") / "template.gguf", state.path("facts"), options, out, state.progress)

    state.stage("attribute", build, after=("load", "facts"), **asdict(options))


def _unlearn(state: _Run) -> None:
    from gguf_forget.stages.training_state import remove_states
    from gguf_forget.stages.unlearn import unlearn

    options = state.recipe.unlearn

    def build(out: Path) -> None:
        template = state.path("load") / "template.gguf"
        stocks = [state.path("stock") / f"{grid}.gguf" for grid in options.grids]
        circuit = state.path("attribute") / "circuit.safetensors"
        unlearn(template, stocks, state.path("facts"), circuit, options, out, state.progress)

    done = state.stage("unlearn", build, after=("load", "stock", "facts", "attribute"), **asdict(options))
    if not done.skipped:
        remove_states(state.directory.path)  # only now does the training lie elsewhere, whole


def _provenance(state: _Run) -> dict[str, Any]:
    from gguf_forget.export.derived_names import derived_keys

    model = read_json(state.path("load") / "model.json")
    facts = read_json(state.path("facts") / "text.json")
    summary = read_json(state.path("unlearn") / "unlearn.json")
    circuit = read_json(state.path("attribute") / "circuit.json")
    return {
        **derived_keys(state.path("load") / "template.gguf"),
        "gguf_forget.version": __version__,
        "gguf_forget.method": f"through-the-grid {summary['objective']} inside an EAP-IG circuit",
        "gguf_forget.base_sha256": model["source_sha256"],
        "gguf_forget.facts_sha256": facts["facts_sha256"],
        "gguf_forget.circuit_neurons": circuit["neurons"],
        "gguf_forget.edited_weights": summary["moved"],
        "gguf_forget.trained_grid": ", ".join([summary["grid"], *summary["other_grids"]]),
    }


def _export(state: _Run) -> None:
    from gguf_forget.stages.export import export

    types, unlearning = state.recipe.export.types, state.recipe.unlearn
    trained = unlearning.grids if unlearning.floor else ()

    def build(out: Path) -> None:
        export(
            state.path("load") / "template.gguf",
            state.path("stock"),
            state.path("facts"),
            state.path("unlearn") / "edit.safetensors",
            types,
            trained,
            _provenance(state),
            out,
            state.progress,
        )

    state.stage("export", build, after=("load", "stock", "facts", "attribute", "unlearn"), types=list(types))


def _baseline_types(recipe: Recipe) -> tuple[str, ...]:
    return BASELINE_TYPES if recipe.verify.baselines else ()


def _baseline(state: _Run) -> None:
    from gguf_forget.stages.baseline import npo_baseline

    recipe = state.recipe
    types = _baseline_types(recipe)
    if not types:
        return
    options = {"trained_phrasings": recipe.verify.trained_phrasings, "seed": recipe.unlearn.seed}

    def build(out: Path) -> None:
        template = state.path("load") / "template.gguf"
        npo_baseline(template, state.path("facts"), types, out, state.progress, **options)

    state.stage("baseline", build, after=("load", "facts"), types=list(types), **options)


def judged_files(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """``variant/type`` to (stage, file inside it): every file that llama.cpp is asked about."""
    files = {}
    for file_type in recipe.export.types:
        files[f"original/{file_type}"] = ("stock", f"{file_type}.gguf")
        files[f"unlearned/{file_type}"] = ("export", f"unlearned.{file_type}.gguf")
        if file_type != "F16":  # floating point: stock and bin-aware are the same weights
            files[f"unlearned_stock/{file_type}"] = ("export", f"stock/{file_type}.gguf")
    for file_type in _baseline_types(recipe):
        files[f"npo_stock/{file_type}"] = ("baseline", f"{file_type}.gguf")
        if file_type != "F32":
            files[f"original/{file_type}"] = ("stock", f"{file_type}.gguf")
    return files


def score_stage(row: str) -> str:
    return "score-" + row.lower().replace("/", "-")


def _verify(state: _Run) -> None:
    from gguf_forget.stages.verify import score

    options = state.recipe.verify
    settings = {
        "max_new_tokens": options.max_new_tokens,
        "retain_items": options.retain_items,
        "trained_phrasings": options.trained_phrasings,
    }
    for row, (stage, name) in judged_files(state.recipe).items():
        file = state.path(stage) / name

        def build(out: Path, file: Path = file) -> None:
            score(file, state.path("facts"), out, state.progress, threads=options.threads, **settings)

        digest = state.done[stage].outputs[name]["sha256"]
        state.stage(score_stage(row), build, after=("facts",), file=digest, code=state.code, **settings)


def _report(state: _Run) -> None:
    from gguf_forget.stages.report import report

    recipe = state.recipe
    rows = {row: state.path(score_stage(row)) for row in judged_files(recipe)}
    stages = ("load", "stock", "facts", "agreement", "attribute", "unlearn", "export")

    def build(out: Path) -> None:
        report(recipe, {stage: state.path(stage) for stage in stages}, rows, state.versions, out)

    after = (*stages, *(score_stage(row) for row in rows))
    state.stage("report", build, after=after, recipe=recipe.without_folders(), code=state.code)


def _evidence(state: _Run) -> None:
    from gguf_forget.stages.evidence import write_evidence

    recipe = state.recipe
    rows = {row: state.path(score_stage(row)) for row in judged_files(recipe)}
    stages = ("load", "stock", "facts", "attribute", "unlearn", "export", "report")

    def build(out: Path) -> None:
        write_evidence(recipe, {stage: state.path(stage) for stage in stages}, rows, out, state.progress)

    after = (*stages, *(score_stage(row) for row in rows))
    state.stage("evidence", build, after=after, recipe=recipe.without_folders(), code=state.code)


_BUILDERS: dict[str, Callable[[_Run], None]] = {
    "load": _load,
    "stock": _stock,
    "facts": _facts,
    "agreement": _agreement,
    "attribute": _attribute,
    "unlearn": _unlearn,
    "export": _export,
    "baseline": _baseline,
    "verify": _verify,
    "report": _report,
    "evidence": _evidence,
}
