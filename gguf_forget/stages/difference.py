"""``gguf-forget diff``: two models compared, directories converted before, and a picture of what differs."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.export.difference import Difference, difference
from gguf_forget.export.inputs import as_ggufs, check_models, input_files
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.progress import Progress
from gguf_forget.report.difference_plot import plot_difference
from gguf_forget.report.pictures import picture_format
from gguf_forget.whole_file import check_folder_writable, check_output


@dataclass(frozen=True)
class DifferenceJob:
    """before, after: GGUFs or Hugging Face directories. file_type, options: the grid that updates are measured on, as
    in :func:`gguf_forget.export.difference.difference`. plot: the picture, .png or .svg. llama_cpp: a checkout whose
    converter is used.
    """

    before: Path
    after: Path
    file_type: str | None = None
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    plot: Path | None = None
    llama_cpp: Path | None = None


def compare_models(job: DifferenceJob, progress: Progress) -> Difference:
    """Compare, and draw the picture where one is asked for.

    A directory becomes a GGUF as for ``gguf-forget quantize``, in the system's temporary directory. Of the second of
    two directories, and of one whose weights go under the first model's header, only the weights are looked at.

    Raises InputError, before any work, for a picture that would take the place of an input, and for models that
    cannot be compared.
    """
    check_models([job.before, job.after])
    if job.plot is not None:
        _check_picture(job, job.plot)
    with (
        _opened(job, progress) as (before, after),
        progress.task("comparing", len(stored_tensors(before))) as advance,
    ):
        found = difference(
            before,
            after,
            file_type=job.file_type,
            options=job.options,
            called=(job.before, job.after),
            advance=advance,
        )
    if job.plot is not None:
        _draw(found, job.plot, " → ".join(path.absolute().name for path in (job.before, job.after)))
    return found


def _opened(job: DifferenceJob, progress: Progress) -> AbstractContextManager[tuple[Path, Path]]:
    if not job.before.is_dir() and not job.after.is_dir():
        return nullcontext((job.before, job.after))  # nothing to convert, so that no directory for it is needed
    return as_ggufs(job.before, job.after, Path(tempfile.gettempdir()), progress, llama_cpp=job.llama_cpp)


def _check_picture(job: DifferenceJob, plot: Path) -> None:
    picture_format(plot)
    check_folder_writable(plot.parent)
    importance = job.options.importance
    check_output(plot, input_files([job.before, job.after], [] if importance is None else [importance.path]))


def _draw(found: Difference, path: Path, title: str) -> None:
    shifts: Counter[int] = Counter()
    updates: Counter[float] = Counter()
    for tensor in found.tensors:
        shifts.update(tensor.shifts or {})
        updates.update(tensor.updates or {})
    plot_difference(path, shifts, updates, title=title)
