"""Whenever an export is killed, each destination is the old file or the new one, and the next run clears up."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_shapes import shape_weights, write_shape

from gguf_forget.errors import LlamaError
from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.quantize import ExportOptions, export_types, plan_export
from gguf_forget.export.scratch import remove_strays
from gguf_forget.progress import Progress

EXPORTS = """
import sys
from pathlib import Path
from gguf_forget.export.inputs import opened_pair
from gguf_forget.export.quantize import ExportOptions, export_types, plan_export
from gguf_forget.progress import Progress
folder = Path(sys.argv[1])
files = {kind: folder / f"{kind}.gguf" for kind in ("Q4_0", "Q8_0")}
with opened_pair(folder / "original.gguf", folder / "unlearned.gguf", folder, Progress()) as pair:
    options = ExportOptions(threads=1)
    planned = plan_export(pair, list(files), options)
    print("started", flush=True)
    export_types(pair, planned, files, options, Progress())
print("done", flush=True)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    weights = shape_weights("llama")
    changed = {name: values + np.float32(0.01) * (values > 0.08) for name, values in weights.items()}
    write_shape(tmp_path / "original.gguf", "llama", weights)
    write_shape(tmp_path / "unlearned.gguf", "llama", changed)
    return tmp_path


def test_killed_at_any_moment(models: Path) -> None:
    names = ("Q4_0", "Q8_0")
    command = [sys.executable, "-c", EXPORTS, str(models)]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    took = time.monotonic() - start
    new = {kind: (models / f"{kind}.gguf").read_bytes() for kind in names}
    draw = random.Random(0)
    left = 0
    for _ in range(4):
        for kind in names:
            (models / f"{kind}.gguf").write_bytes(b"the old file")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(draw.uniform(0, took / 3))
            child.kill()
        left += len(list(models.glob(".gguf-forget-*")))
        for kind in names:
            assert (models / f"{kind}.gguf").read_bytes() in (b"the old file", new[kind])
    assert left > 0
    remove_strays(models)
    expected = ["Q4_0.gguf", "Q8_0.gguf", "original.gguf", "unlearned.gguf"]
    assert sorted(path.name for path in models.iterdir()) == expected


def test_killed_while_a_twin_and_the_evidence_are_made(models: Path) -> None:
    """They take longer than the file itself, which must not be there before them."""
    out, twin, evidence = models / "out.gguf", models / "out.twin.F16.gguf", models / "evidence"
    command = [sys.executable, "-m", "gguf_forget", "quantize", str(models / "original.gguf")]
    command += [str(models / "unlearned.gguf"), str(out), "Q4_0", "-q", "--twin", "F16", "--evidence", str(evidence)]
    subprocess.run(command, check=True, capture_output=True)
    new = [path.read_bytes() for path in (out, twin, evidence / "evidence.json")]
    left = 0
    for _ in range(3):
        shutil.rmtree(evidence)
        twin.unlink()
        out.write_bytes(b"the old file")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and not list(models.glob(".gguf-forget-*/out.twin.F16.gguf")):
                time.sleep(0.002)
            child.kill()
        left += len(list(models.glob(".gguf-forget-*")))
        assert out.read_bytes() in (b"the old file", new[0])
        if out.read_bytes() == b"the old file":
            assert not twin.exists()
            assert not evidence.exists()
        elif twin.exists():
            assert twin.read_bytes() == new[1]
        if not evidence.exists():
            subprocess.run(command, check=True, capture_output=True)
        assert [path.read_bytes() for path in (out, twin)] == new[:2]
    assert left > 0
    assert sorted(path.name for path in models.iterdir()) == sorted(
        ["evidence", "original.gguf", "out.gguf", "out.twin.F16.gguf", "unlearned.gguf"]
    )


def test_where_a_later_type_fails_no_file_appears(models: Path) -> None:
    files = {kind: models / f"{kind}.gguf" for kind in ("Q4_0", "Q2_K_S")}  # the latter needs an importance matrix
    files["Q4_0"].write_bytes(b"the old file")
    options = ExportOptions(threads=1)
    with opened_pair(models / "original.gguf", models / "unlearned.gguf", models, Progress()) as pair:
        planned = plan_export(pair, list(files), options)
        with pytest.raises(LlamaError, match="to Q2_K_S"):
            export_types(pair, planned, files, options, Progress())
    assert files["Q4_0"].read_bytes() == b"the old file"
    assert sorted(path.name for path in models.iterdir()) == ["Q4_0.gguf", "original.gguf", "unlearned.gguf"]
