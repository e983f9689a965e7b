"""A signature over an evidence folder, by OpenSSF's model-signing: a Sigstore bundle made with a local key.

It lies in the folder that it is of, and covers every other file there. Hashes alone do not find somebody who changes
everything consistently; with a signature they would need the private key.
"""

from __future__ import annotations

import base64
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.stages import evidence as bundle
from gguf_forget.stages.recompute import CHANGED, read_manifest
from gguf_forget.whole_file import replaced_whole, sha256_file

SIGNATURE = "evidence.sig"


def sign(folder: Path, private_key: Path) -> dict[str, Any]:
    """Sign an evidence folder whose hashes hold; an earlier signature is replaced.

    Args:
        private_key: PEM without a password, of an elliptic curve (P-256, P-384 or P-521).

    Raises InputError for a folder or key that cannot be used, EvaluationError for a folder that was changed.
    """
    signing, hashing = _library("signing"), _library("hashing")
    read_manifest(folder, bundle.RUN, bundle.EXPORT)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:  # a key is foreign input, and the libraries have many types of errors for it
        raise _bad_key("private", private_key, error) from error
    config.set_hashing_config(_every_file(hashing))
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / SIGNATURE
        try:
            config.sign(folder, made)
        except ValueError as error:  # a link among the files
            raise InputError(f"{folder} cannot be signed", cause=str(error)) from error
        with replaced_whole(folder / SIGNATURE) as file:
            file.write(made.read_bytes())
    return _document(folder)


def check_signature(folder: Path, public_key: Path) -> dict[str, Any]:
    """See that the folder's signature was made with the private key of this public one, of these very files.

    Raises InputError for a folder without signature or a key that cannot be used, EvaluationError where the signature
    is another key's or of other files.
    """
    verifying, hashing = _library("verifying"), _library("hashing")
    if not (folder / SIGNATURE).is_file():
        raise InputError(f"{folder} holds no {SIGNATURE}", hint=f"gguf-forget sign {folder} --private-key KEY")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # a key is foreign input, and the libraries have many types of errors for it
        raise _bad_key("public", public_key, error) from error
    config.set_hashing_config(_every_file(hashing))
    try:
        config.verify(folder, folder / SIGNATURE)
        left_out = _left_out(folder / SIGNATURE)  # which the library leaves out, whatever it is told
    except Exception as error:  # a signature is foreign input, and the library names no type
        raise EvaluationError(
            f"{folder / SIGNATURE} is no signature of {folder} by {public_key}",
            cause=str(error) or type(error).__name__,
            hint=CHANGED,
        ) from error
    if left_out:
        raise EvaluationError(
            f"{folder / SIGNATURE} leaves out {', '.join(left_out)}, needed a signature of every file",
            hint="have it signed again",
        )
    read_manifest(folder, bundle.RUN, bundle.EXPORT)
    return _document(folder)


def _every_file(hashing: Any) -> Any:
    """All files but the signature, those of git as well."""
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _left_out(signature: Path) -> list[str]:
    """What a signature says that it does not cover, but for itself."""
    envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return sorted(set(statement["predicate"]["serialization"].get("ignore_paths", ())) - {SIGNATURE})


def _library(part: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise InputError(
            "signatures need the package model-signing, which is not installed",
            cause=str(error),
            hint="pip install 'gguf-forget[signing]'",
        ) from error


def _bad_key(kind: str, path: Path, error: Exception) -> InputError:
    return InputError(
        f"the {kind} key {path} cannot be used, needed an elliptic curve's (P-256, P-384, P-521) as PEM, no password",
        cause=str(error),
        hint="openssl ecparam -name prime256v1 -genkey -noout -out private.pem; "
        "openssl ec -in private.pem -pubout -out public.pem",
    )


def _document(folder: Path) -> dict[str, Any]:
    """What both commands say with --json."""
    return {
        "schema_version": 1,
        "evidence": str(folder),
        "evidence_sha256": sha256_file(folder / bundle.MANIFEST),
        "signature": str(folder / SIGNATURE),
    }
