"""The command that quantizes an unlearned model so that its edits stay."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import click

from gguf_forget.cli.common import common, guarded
from gguf_forget.cli.quantize_options import quantize_options, read_quantize_options
from gguf_forget.errors import InputError
from gguf_forget.whole_file import real_path

DEFAULT_TYPE = "Q4_K_M"


@click.command(short_help="Quantize a model unlearned by any tool, edits kept.")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("unlearned", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path())
@click.argument("types", metavar="[TYPE]...", nargs=-1)
@quantize_options
@click.option(
    "--survive",
    type=click.Choice(["all", "important", "none"]),
    default="important",
    show_default=True,
    help="Which edits must land at least one code away: every one, those of half a step or more, or none.",
)
@click.option(
    "--aim",
    type=click.Choice(["weights", "edit"]),
    default="weights",
    show_default=True,
    help="What the codes of edited weights come closest to: the unlearned weights, or the original's file plus the "
    "edit (exact for few edits of whole steps, but small ones are lost).",
)
@click.option(
    "--no-carry",
    is_flag=True,
    help="With --aim weights: leave edits far smaller than a step to rounding. Else further codes move until the edit "
    "of each row has arrived as a whole.",
)
@click.option(
    "--saturated",
    type=click.Choice(["count", "widen"]),
    default="count",
    show_default=True,
    help="An edit that its grid has no code for: leave it out and count it, or give its sub-block a wider grid.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Text, or facts as JSONL: codes are chosen so that errors cancel on such inputs. Needs torch and memory for "
    "the unlearned model in float32. May be repeated.",
)
@click.option(
    "--outside-mask",
    type=click.Choice(["frozen", "compensate"]),
    default="frozen",
    show_default=True,
    help="With --calibration: whether weights without an edit keep their codes or may make good the errors of others.",
)
@click.option(
    "--fit",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Facts as JSONL, and text: an edited weight of a layer takes the other of the two levels beside it where that "
    "brings answers closer to those of UNLEARNED. Needs torch, minutes, and memory for several such models. May be "
    "repeated.",
)
@click.option(
    "--fit-steps",
    type=click.IntRange(1),
    help="Batches of 74 prompts and some text that --fit takes.  [default: 40; with --fit-kept original 80]",
)
@click.option(
    "--fit-kept",
    type=click.Choice(["unlearned", "original"]),
    help="What --fit wants of kept facts: UNLEARNED's answers, or ORIGINAL's wherever the file's are less likely: this "
    "gives back what unlearning took from them. Forgotten answers may then end farther from UNLEARNED's.  "
    "[default: unlearned]",
)
@click.option("--split-max-size", metavar="N(M|G)", help="Write files of at most N million or billion bytes.")
@click.option("--keep-split", is_flag=True, help="Write as many files as ORIGINAL has, with the same tensors.")
@click.option("--no-provenance", is_flag=True, help="Add no gguf_forget.* keys to files that hold an edit.")
@click.option(
    "--noise",
    type=click.FloatRange(0),
    help="Differences of at most this are no edit.  [default: what the files' types round by]",
)
@click.option(
    "--twin",
    type=click.Choice(["F16", "BF16"]),
    help="Also write OUT.twin.F16.gguf (or .BF16.), to be quantized by anyone.",
)
@click.option(
    "--evidence",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write hashes, versions, options and all moved codes, from which `rebuild` gives each file back.",
)
@click.option(
    "--llama-cpp", type=click.Path(path_type=Path), help="A checkout of llama.cpp to convert directories with."
)
@click.option("-t", "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: all  [default: 0]")
@common
def quantize(
    original: Path,
    unlearned: Path,
    out: str,
    types: tuple[str, ...],
    survive: str,
    aim: str,
    no_carry: bool,
    saturated: str,
    calibration: tuple[Path, ...],
    outside_mask: str,
    fit: tuple[Path, ...],
    fit_steps: int | None,
    fit_kept: str | None,
    split_max_size: str | None,
    keep_split: bool,
    no_provenance: bool,
    noise: float | None,
    twin: str | None,
    evidence: Path | None,
    llama_cpp: Path | None,
    threads: int,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Quantize the UNLEARNED model on the grid of the ORIGINAL, so that the edits are really in OUT.

    ORIGINAL and UNLEARNED are GGUFs (F32, F16, BF16 or Q8_0) or Hugging Face directories, unlearned by any tool. What
    differs between them is the edit; where both are stored in one type every difference counts, else those beyond what
    storing can have done. Each TYPE (default Q4_K_M) gives a file: OUT itself, or for several types, or where OUT is a
    directory or ends in /, OUT/UNLEARNED.TYPE.gguf; nothing appears before all are finished. Tensors of types that
    cannot be protected are named. A twin is the original in half precision with the same edits, which llama.cpp's own
    quantization to TYPE then keeps.

    \b
    Examples:
      gguf-forget quantize base.gguf unlearned.gguf out.gguf Q4_K_M
      gguf-forget quantize base/ unlearned/ shipped/ Q4_K_M Q8_0 Q4_0 --imatrix base.imatrix
    """

    def work() -> int:
        from gguf_forget.export.patch import RoundingOptions
        from gguf_forget.export.quantize import ExportOptions
        from gguf_forget.export.split import parse_size
        from gguf_forget.llama.quantizer import FILE_TYPES, file_type_name
        from gguf_forget.progress import progress_for
        from gguf_forget.stages.fit import KEPT, FitOptions
        from gguf_forget.stages.quantize import QuantizeJob, quantize_model

        place = Path(out)
        if not types and file_type_name(place.name) in FILE_TYPES:
            raise InputError(
                f"{out} is the name of a type, needed OUT before it",
                hint=f"give OUT {place.name}, or a name with .gguf",
            )
        if noise is not None and not math.isfinite(noise):
            raise InputError(f"--noise is {noise}, needed a finite number", hint="such as 0 or 1e-6")
        if split_max_size is not None and keep_split:
            raise InputError("--split-max-size and --keep-split both say how to split", hint="give one of them")
        for option, value in (("--fit-steps", fit_steps), ("--fit-kept", fit_kept)):
            if value is not None and not fit:
                raise InputError(f"{option} {value} without --fit: nothing says what to fit", hint="give --fit FACTS")
        if llama_cpp is not None and os.path.isfile(original) and os.path.isfile(unlearned):
            raise InputError(f"--llama-cpp {llama_cpp} beside two GGUFs: nothing is converted", hint="leave it out")
        options = ExportOptions(
            read_quantize_options(**given),
            RoundingOptions(survive, outside_mask, noise, saturated, aim, not no_carry),
            threads,
            split_bytes=0 if split_max_size is None else parse_size(split_max_size),
            keep_split=keep_split,
        )
        kinds = list(dict.fromkeys(file_type_name(kind) for kind in types or (DEFAULT_TYPE,)))
        job = QuantizeJob(
            original,
            unlearned,
            place,
            destinations(unlearned, place, kinds, folder=out.endswith(os.sep)),
            options,
            calibration=calibration,
            provenance=not no_provenance,
            llama_cpp=llama_cpp,
            twin=twin,
            evidence=evidence,
            fit=FitOptions(fit, fit_kept or KEPT[0], fit_steps or 0),
        )
        document = quantize_model(job, progress_for(quiet=quiet), dry_run=dry_run)
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        else:
            _print(document, dry_run=dry_run)
        return 0

    guarded(work, debug=debug, interrupted="every file is the old one or the new one, whole")


def destinations(unlearned: Path, out: Path, file_types: list[str], *, folder: bool) -> dict[str, Path]:
    """File type to file. folder: ``out`` is one, which need not be there yet."""
    if len(file_types) == 1 and not folder and not os.path.isdir(out):
        return {file_types[0]: out}
    if os.path.isfile(out):
        raise InputError(f"{out} is a file, needed a directory")
    stem = real_path(unlearned).name.removesuffix(".gguf")
    return {kind: out / f"{stem}.{kind}.gguf" for kind in file_types}


def _print(document: dict[str, Any], *, dry_run: bool) -> None:
    edited = len(document["edited_tensors"])
    click.echo(f"{edited} tensors are edited")
    for file in document["files"]:
        more = len(file.get("files", ())) - 1
        parts = f" and {more} more files" if more > 0 else ""
        click.echo(f"{file['file']}{parts}  {file['type']}  {file['bytes']:,} bytes")
        if dry_run:
            click.echo(f"  {_mixture(file['types'])}")
        else:
            counts = file["totals"]
            click.echo(
                f"  {counts['edited']:,} weights edited, {counts['asked']:,} must land: {counts['landed']:,} landed, "
                f"{counts['saturated']:,} at the end of their grid; {counts['moved']:,} codes moved"
            )
            if counts["arrived_share"] is not None:
                click.echo(f"  {counts['arrived_share']:.1%} of the edit arrives: shipped less stock weights, along it")
            if "fit" in file:
                _print_fit(file["fit"])
            if counts["widened"]:
                click.echo(
                    f"  {counts['widened']:,} sub-blocks got a wider grid, "
                    f"which changed {counts['regridded']:,} weights without an edit"
                )
        if "twin" in file:
            found = file["twin"]
            click.echo(
                f"{found['file']}  {found['type']}  {found['bytes']:,} bytes\n  its stock {file['type']} keeps "
                f"{found['kept']:,} of the {found['moved']:,} weights that moved; {found['pushed']:,} needed more than "
                "whole steps"
            )
        if file["not_protected"]:
            click.echo(f"  not protected, rounded as usual: {', '.join(file['not_protected'])}")
    if "evidence" in document:
        click.echo(f"evidence in {document['evidence']}")


def _mixture(types: dict[str, str]) -> str:
    """How many tensors get which type, most of all first."""
    return ", ".join(f"{count} tensors {kind}" for kind, count in Counter(types.values()).most_common())


def _print_fit(fit: dict[str, Any]) -> None:
    for when in ("before", "after"):
        found = fit[when]
        click.echo(
            f"  {when} fitting, from the unlearned model: forgotten answers {found['gap']:+.2f} nats, kept ones "
            f"{found['retain']:.3f}, text {found['text']:.3f}"
            + (f"; kept answers {found['lost']:.2f} nats below the original's" if fit["kept"] == "original" else "")
        )
    click.echo(
        f"  {fit['moved']:,} codes were chosen otherwise"
        if fit["better"]
        else "  nothing was better: all codes stay as they were rounded"
    )
    if fit["without"]:
        click.echo(f"  not fitted: {', '.join(fit['without'])}")
