"""Block grids of GGUF: bytes to (codes, grid of levels) and back. numpy only, no files.

A new block type is one file beside these and one line in ``CODECS``.
"""

from __future__ import annotations

from gguf_forget.errors import UnsupportedError
from gguf_forget.grids import iq4_nl, iq4_xs, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0
from gguf_forget.grids.layout import Codec
from gguf_forget.grids.levels import Levels
from gguf_forget.grids.nearest import nearest_codes

CODECS: dict[str, Codec] = {
    "Q4_0": q4_0.CODEC,
    "Q4_1": q4_1.CODEC,
    "Q5_0": q5_0.CODEC,
    "Q5_1": q5_1.CODEC,
    "Q8_0": q8_0.CODEC,
    "Q2_K": q2_k.CODEC,
    "Q3_K": q3_k.CODEC,
    "Q4_K": q4_k.CODEC,
    "Q5_K": q5_k.CODEC,
    "Q6_K": q6_k.CODEC,
    "IQ4_NL": iq4_nl.CODEC,
    "IQ4_XS": iq4_xs.CODEC,
}


def codec_for(type_name: str) -> Codec:
    """The codec of a ggml type name such as ``"Q4_K"``. Raises UnsupportedError for any other type."""
    try:
        return CODECS[type_name]
    except KeyError:
        raise UnsupportedError(
            f"block type {type_name!r} has no codec, one of {', '.join(CODECS)} is needed",
            hint="quantize to a mix that uses only these types",
        ) from None


__all__ = ["CODECS", "Codec", "Levels", "codec_for", "nearest_codes"]
