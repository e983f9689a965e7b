"""A pair of keys for a test."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_keys(folder: Path, *, curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> None:
    """Write private.pem and public.pem; P-256 unless told otherwise."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    how = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    folder.mkdir(exist_ok=True)
    (folder / "private.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    )
    (folder / "public.pem").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
