"""From what the user has (a Hugging Face directory or a GGUF) to one F32 template and a torch model.

The template is the original in full precision as a GGUF: every later file is made from it, so that tokenizer,
chat template and metadata stay the original's.
"""

from __future__ import annotations

import copy
import io
import math
import os
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_forget.checkpoint.architecture import architecture
from gguf_forget.checkpoint.convert import convert_directory
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import InputError

if TYPE_CHECKING:
    from gguf_forget.facts.tokens import Tokenize


@dataclass(frozen=True)
class ModelSummary:
    """What a model is; sizes in units (rows, heads), ``parameters`` counts every weight of the file."""

    architecture: str
    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    parameters: int
    source_type: str  # the most frequent type among the source's two-dimensional tensors

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(file: GgufFile, *, source_type: str | None = None) -> ModelSummary:
    """Read the sizes; :class:`UnsupportedError` for an architecture that the tool does not know."""
    kind = file.text("general.architecture")
    architecture(kind)

    def number(key: str, default: int | None = None) -> int:
        value = file.value(f"{kind}.{key}", default)
        if not isinstance(value, int) or value <= 0:
            raise InputError(f"{file.path}: metadata {kind}.{key} is {value!r}, needed a positive number")
        return value

    matrices = [file.type_name(name) for name, tensor in file.tensors.items() if len(tensor.shape) == 2]
    if not matrices:
        raise InputError(f"{file.path} has no two-dimensional tensor, needed the weights of a model")
    heads = number("attention.head_count")
    return ModelSummary(
        architecture=kind,
        name=str(file.value("general.name", file.path.stem)),
        layers=number("block_count"),
        hidden=number("embedding_length"),
        feed_forward=number("feed_forward_length"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        vocabulary=len(file.value("tokenizer.ggml.tokens", [])),
        parameters=sum(math.prod(int(size) for size in tensor.shape) for tensor in file.tensors.values()),
        source_type=source_type or max(sorted(set(matrices)), key=matrices.count),
    )


def _check_finite(file: GgufFile, model: Path) -> None:
    """Refuse NaN and infinity in the unquantized tensors of ``file``; ``model`` is what the message names."""
    for name in file.tensors:
        if file.type_name(name) in ("F32", "F16", "BF16"):
            bad = int((~np.isfinite(file.weights(name))).sum())
            if bad:
                raise InputError(f"{model}: tensor {name} holds {bad} weights that are NaN or infinite")


def write_template(model: Path, template: Path) -> ModelSummary:
    """Write the F32 template of ``model`` (directory or GGUF) and say what it is.

    Weights that are NaN or infinite are refused by the tensor's name.
    """
    from gguf_forget.llama.quantizer import quantize

    if model.is_dir():
        convert_directory(model, template)
        source_type = "F32 (converted)"
    elif model.is_file():
        source = GgufFile(model)
        source_type = summarise(source).source_type
        _check_finite(source, model)  # llama.cpp would refuse such a tensor without a count
        quantize(model, template, "F32", allow_requantize=True)
    else:
        raise InputError(
            f"the model {model} does not exist",
            hint="give a Hugging Face directory or a GGUF file in [model] path",
        )
    file = GgufFile(template)
    _check_finite(file, model)
    return summarise(file, source_type=source_type)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _few_kernels_kept() -> None:
    """oneDNN compiles a kernel for every shape, and keeps 1,024 of them: in training, where every batch has another
    shape, gigabytes that are hardly ever used again. It reads this when it is first used; whoever sets it decides.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def load_torch(path: Path, *, bfloat16: bool = False) -> Any:
    """The GGUF as a Hugging Face model in evaluation mode, no parameter requires gradients.

    bfloat16: parameters alone, see :func:`bfloat16_copy`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from gguf_forget.checkpoint.quick_reader import quick_gguf

    _quiet_transformers()
    _few_kernels_kept()
    with quick_gguf(), redirect_stderr(io.StringIO()):  # a progress bar that transformers' own switch does not reach
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    if bfloat16:
        for parameter in model.parameters():  # in place: a copy of a large model would be half as much memory again
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.eval().requires_grad_(False)


def bfloat16_copy(model: Any) -> Any:
    """A copy whose parameters, and they alone, are bfloat16, as those of :func:`load_torch`.

    The frequencies of rotary embeddings, which are no parameters, stay float32: rounded to 8 bits they would turn the
    hundredth token by up to 0.2 radian.
    """
    import torch

    rounded = {
        id(parameter): torch.nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, rounded)  # deepcopy takes what it is told to be copied already


def load_tokenizer(path: Path) -> Tokenize:
    """The GGUF's tokenizer as transformers reads it: text to token ids, BOS as the metadata says."""
    from transformers import AutoTokenizer

    from gguf_forget.checkpoint.quick_reader import quick_gguf

    _quiet_transformers()
    with quick_gguf():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=True)["input_ids"])

    return tokenize
