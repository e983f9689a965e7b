"""Signatures of evidence folders: by whom, of what, and everything that they find."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from changed_evidence import relist, rewrite
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing
from signing_keys import make_keys
from tiny_shapes import shape_weights, write_shape

from gguf_forget.cli import main
from gguf_forget.stages.evidence import EXPORT
from gguf_forget.stages.recompute import read_manifest
from gguf_forget.whole_file import sha256_file

UP = "blk.0.ffn_up.weight"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """The signed evidence of an export, keys in ``keys`` beside it."""
    weights = shape_weights("llama")
    base = write_shape(tmp_path / "base.gguf", "llama", weights)
    forgets = write_shape(tmp_path / "forgets.gguf", "llama", {**weights, UP: weights[UP] + np.float32(0.1)})
    folder = tmp_path / "evidence"
    assert call("quantize", base, forgets, tmp_path / "out.gguf", "Q8_0", "-q", "--evidence", folder).exit_code == 0
    make_keys(tmp_path / "keys")
    result = call("sign", folder, "--private-key", tmp_path / "keys" / "private.pem")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"signed: {folder / 'evidence.sig'}\n"
    return folder


def check(evidence: Path, keys: str = "keys") -> Result:
    return call("check-signature", evidence, "--public-key", evidence.parent / keys / "public.pem")


def test_a_signature_holds_wherever_the_folder_lies(evidence: Path) -> None:
    assert check(evidence).exit_code == 0
    moved = evidence.rename(evidence.parent / "elsewhere")
    result = check(moved)
    assert result.exit_code == 0
    assert result.stdout == f"the signature holds: {moved / 'evidence.sig'}\n"


def test_model_signing_itself_reads_it(evidence: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(evidence)]
    command += ["--signature", str(evidence / "evidence.sig")]
    command += ["--public_key", str(evidence.parent / "keys" / "public.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_consistent_change_of_everything_is_found(evidence: Path) -> None:
    rewrite(evidence / "evidence.json", lambda manifest: manifest["tools"].update(torch="9"))
    relist(evidence)
    assert read_manifest(evidence, EXPORT)["tools"]["torch"] == "9"  # hashes alone do not find it
    result = check(evidence)
    assert result.exit_code == 3
    assert "is no signature of" in result.stderr
    assert "evidence.json" in result.stderr


def test_a_signature_that_leaves_files_out_is_none(evidence: Path) -> None:
    """The library takes from the signature what it leaves out: here those of git, as by its own default."""
    config = signing.Config().use_elliptic_key_signer(private_key=evidence.parent / "keys" / "private.pem")
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["evidence.sig"]))
    config.sign(evidence, evidence / "evidence.sig")
    result = check(evidence)
    assert result.exit_code == 3
    assert "leaves out .git, .gitattributes" in result.stderr


def test_files_added_or_taken_away_are_found(evidence: Path) -> None:
    (evidence / "more").write_text("more")
    assert check(evidence).exit_code == 3
    (evidence / "more").unlink()
    assert check(evidence).exit_code == 0
    for name in (".gitattributes", ".git/hooks/post-checkout"):  # which the library leaves out unless told not to
        path = evidence / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("more")
        assert check(evidence).exit_code == 3
        path.unlink()
    (evidence / "moves" / "Q8_0.moves.npz").unlink()
    assert check(evidence).exit_code == 3


def test_another_key_and_a_spoiled_signature_are_found(evidence: Path) -> None:
    make_keys(evidence.parent / "others")
    result = check(evidence, "others")
    assert result.exit_code == 3
    assert "Key mismatch" in result.stderr
    for content in (b"", b"{}", b"[]", b"\xff", (evidence / "evidence.sig").read_bytes().replace(b"a", b"b")):
        (evidence / "evidence.sig").write_bytes(content)
        result = check(evidence)
        assert result.exit_code == 3, content
        assert result.stderr.startswith("error: ")
    (evidence / "evidence.sig").unlink()
    result = check(evidence)
    assert result.exit_code == 2
    assert "holds no evidence.sig" in result.stderr


@pytest.mark.parametrize("kind", ["absent", "no key", "with a password", "of another curve", "the public one"])
def test_a_key_that_cannot_be_used_is_refused(evidence: Path, kind: str) -> None:
    before = sha256_file(evidence / "evidence.sig")
    keys = evidence.parent / "bad"
    make_keys(
        keys,
        curve=ec.SECP256K1() if kind == "of another curve" else None,
        password=b"secret" if kind == "with a password" else None,
    )
    private = keys / ("public.pem" if kind == "the public one" else "private.pem")
    if kind == "absent":
        private.unlink()
    elif kind == "no key":
        private.write_text("no key")
    result = call("sign", evidence, "--private-key", private)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: the private key {private} cannot be used")
    assert sha256_file(evidence / "evidence.sig") == before
    if kind in ("absent", "no key"):
        (keys / "public.pem").write_bytes(private.read_bytes() if private.exists() else b"")
        assert check(evidence, "bad").exit_code == 2


def test_a_key_of_a_curve_that_nobody_knows_is_refused(evidence: Path) -> None:
    """As a spoiled key may be: the object identifier of P-256 (1.2.840.10045.3.1.7) with another digit."""
    lines = (evidence.parent / "keys" / "public.pem").read_text().splitlines()
    known, unknown = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030007")
    raw = base64.b64decode("".join(lines[1:-1]))
    assert known in raw
    spoiled = base64.b64encode(raw.replace(known, unknown)).decode()
    (evidence.parent / "bad").mkdir()
    (evidence.parent / "bad" / "public.pem").write_text("\n".join([lines[0], spoiled, lines[-1], ""]))
    result = check(evidence, "bad")
    assert result.exit_code == 2
    assert "cannot be used" in result.stderr


def test_a_changed_folder_is_not_signed(evidence: Path) -> None:
    (evidence / "moves" / "Q8_0.moves.npz").write_bytes(b"")
    assert call("sign", evidence, "--private-key", evidence.parent / "keys" / "private.pem").exit_code == 3


def test_without_the_package_one_error_says_what_to_install(evidence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("signing", "verifying", "hashing"):
        monkeypatch.setitem(sys.modules, f"model_signing.{part}", None)
    for result in (check(evidence), call("sign", evidence, "--private-key", evidence.parent / "keys" / "private.pem")):
        assert result.exit_code == 2
        assert result.stderr.startswith("error: signatures need the package model-signing, which is not installed\n")
        assert result.stderr.endswith("hint: pip install 'gguf-forget[signing]'\n")
