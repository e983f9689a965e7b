"""llama-quantize's options, for every command that asks what file llama.cpp would make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_forget.cli.common import Command

if TYPE_CHECKING:
    from gguf_forget.llama.options import QuantizeOptions


class TensorType(click.ParamType):
    """``NAME=TYPE``: tensors whose name contains the regular expression NAME get that type."""

    name = "NAME=TYPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        pattern, separator, kind = str(value).rpartition("=")
        if not separator or not pattern or not kind:
            self.fail(f"{value!r}, needed NAME=TYPE such as attn_q=q8_0", param, ctx)
        return pattern, kind


def quantize_options(function: Command) -> Command:
    """Add the options that :func:`read_quantize_options` takes by name."""
    for option in (
        click.option("--pure", is_flag=True, help="No mixtures: every matrix gets the same type."),
        click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings."),
        click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
        click.option("--tensor-type", type=TensorType(), multiple=True, help="Type of some tensors. May be repeated."),
        click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, GGUF or legacy .dat."),
    ):
        function = option(function)
    return function


def read_quantize_options(
    *,
    imatrix: Path | None,
    tensor_type: tuple[tuple[str, str], ...],
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    pure: bool,
) -> QuantizeOptions:
    """What was given, the importance matrix read. Raises InputError for a file that is none."""
    from gguf_forget.llama.imatrix import read_importance
    from gguf_forget.llama.options import QuantizeOptions

    importance = None if imatrix is None else read_importance(imatrix)
    return QuantizeOptions(importance, tensor_type, output_tensor_type, token_embedding_type, pure)
