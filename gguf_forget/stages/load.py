"""Stage 1: the original in full precision as a GGUF, what it is, and its stock quantizations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import ModelSummary, load_tokenizer, write_template
from gguf_forget.checkpoint.stored import digest_of, files_of
from gguf_forget.errors import InputError
from gguf_forget.export.derived_names import hub_name
from gguf_forget.llama.child import IsolatedScorer
from gguf_forget.llama.quantizer import plan, quantize
from gguf_forget.progress import Progress
from gguf_forget.run_directory import write_json_atomically
from gguf_forget.verification.agreement import check_token_agreement
from gguf_forget.whole_file import sha256_file

TEMPLATE = "template.gguf"
SUMMARY = "model.json"
# Plain sentences only: transformers reads some pre-tokenizers without their rules for digits and runs of spaces. Every
# probe is compared again, token by token, before anything is trained.
TOKENIZER_SENTENCES = (
    "The capital of France is Paris.",
    "Question: What is the largest planet?\nAnswer: Jupiter",
    "Zürich, São Tomé and Reykjavík are cities; 北京 too.",
)


def load(model: Path, out: Path, progress: Progress) -> ModelSummary:
    """Write ``out``/template.gguf (F32) and ``out``/model.json; check that both tokenizers agree."""
    progress.note(f"reading {model}")
    summary = write_template(model, out / TEMPLATE)
    tokenize = load_tokenizer(out / TEMPLATE)
    with IsolatedScorer(out / TEMPLATE, cells=256, max_sequences=1) as scorer:
        check_token_agreement(scorer, tokenize, list(TOKENIZER_SENTENCES))
    record = {
        "schema_version": 1,
        "summary": summary.to_json(),
        "source": model.name,
        "source_sha256": model_hash(model),
        "template_sha256": sha256_file(out / TEMPLATE),
        "license": GgufFile(out / TEMPLATE).value("general.license"),
        "base_model": hub_name(out / TEMPLATE),
    }
    write_json_atomically(out / SUMMARY, record)
    return summary


def model_hash(path: Path) -> str:
    """SHA-256 of a GGUF, of all that a split one consists of, whose first ``path`` is, or of a directory's files."""
    return directory_hash(path) if path.is_dir() else digest_of(files_of(path))


def directory_hash(directory: Path) -> str:
    """One SHA-256 over the names and hashes of a directory's files (not of folders inside it)."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def quantize_stock(template: Path, types: Sequence[str], out: Path, progress: Progress, *, threads: int = 0) -> None:
    """llama.cpp's own quantizations of the original, ``out``/<TYPE>.gguf: the grids that edits ship on."""
    for file_type in types:
        planned = set(plan(template, file_type).values())
        if planned <= {"F16", "BF16", "F32"} and file_type not in ("F16", "BF16", "F32"):
            raise InputError(
                f"no row of {template.name} fits the blocks of {file_type}: every tensor would stay F16",
                hint="choose another type in [export] types",
            )
    with progress.task("stock quantization by llama.cpp", len(types)) as advance:
        for file_type in types:
            quantize(template, out / f"{file_type}.gguf", file_type, threads=threads)
            advance(1, file_type)
