"""Changes of an evidence folder, and of all hashes that would tell of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf_forget.report.document import content_hash
from gguf_forget.whole_file import sha256_file


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def relist(evidence: Path, *, report_hash: bool = False) -> None:
    """Put every hash right again, as someone would who covers a change."""
    if report_hash:
        rewrite(evidence / "report.json", lambda report: report.update(sha256=content_hash(report)))
    manifest = json.loads((evidence / "evidence.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256_file(evidence / name)
    if report_hash:
        manifest["report_sha256"] = json.loads((evidence / "report.json").read_text())["sha256"]
    manifest["sha256"] = content_hash(manifest)
    (evidence / "evidence.json").write_text(json.dumps(manifest))
