"""The weights of a Hugging Face directory in a GGUF with another one's header, without a converter.

The header (metadata, tokenizer, names, order and shapes of tensors) is the template's. What is written of a tensor is
first read as transformers reads a GGUF, and has to be what the directory holds, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.directory_weights import TYPES, DirectoryTensor, directory_tensors, widened
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.placement import ALWAYS_FLOAT32, EMBEDDING, GENERATED, HEAD, OUTPUT, Placement, is_buffer
from gguf_forget.checkpoint.stored import StoredTensor, stored_tensors
from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.export.gguf_header import Header, description, read_header
from gguf_forget.llama.blocks import row_bytes
from gguf_forget.llama.options import type_id
from gguf_forget.progress import Progress
from gguf_forget.whole_file import replaced_whole

ROWS_AT_ONCE = 1024
_SAME_SHAPE = "give two models of the same shape, and all files of each"


def write_in_template(template: Path, directory: Path, placement: Placement, out: Path, progress: Progress) -> None:
    """Write ``out``: the header of ``template`` (the first file of a split one), the weights of ``directory``.

    Matrices keep their storage type (F32, F16 or BF16), everything of one dimension is F32, as llama.cpp's converter
    has it. Tensors that a converter makes of the configuration are the template's own. One tensor is in memory at a
    time (of old pickles, which cannot be mapped, a whole file).

    Raises InputError for tensors that are missing, too many, of another shape or type, or a file that cannot be read or
    written; UnsupportedError where transformers reads another weight from what would be written.
    """
    tensors = stored_tensors(template)
    sources = _sources(template, directory, placement, tensors)
    types = {name: _type(tensor, sources.get(name)) for name, tensor in tensors.items()}
    header = _header(template, tensors, types)
    with progress.task("writing weights", len(tensors)) as advance, replaced_whole(out) as file:
        file.write(header.to_bytes())
        for name, tensor in tensors.items():
            source = sources.get(name)
            content = tensor.raw if source is None else _content(directory, source, name, types[name], placement)
            file.write(content.data)
            file.write(bytes(-content.nbytes % header.alignment))
            advance()


def has_plain_header(template: Path) -> bool:
    """Whether the header of a GGUF can be written again; one laid out out of the ordinary is a converter's to make."""
    try:
        read_header(template, GgufFile(template, outline=True))
    except InputError:
        return False
    return True


def _sources(
    template: Path, directory: Path, placement: Placement, tensors: Mapping[str, StoredTensor]
) -> dict[str, DirectoryTensor]:
    """GGUF name to the directory's tensor, for all that is not made of the configuration."""
    held = {name: tensor for name, tensor in directory_tensors(directory).items() if not is_buffer(name)}

    def held_as(name: str) -> DirectoryTensor | None:
        theirs = placement.names.get(name, "")
        return held.get(theirs) or held.get(theirs.removeprefix(placement.prefix))

    embedding, head = held_as(EMBEDDING), held.get(HEAD)
    sources = {}
    for name, tensor in tensors.items():
        source = held_as(name)
        if source is None and name == OUTPUT and placement.tied:
            source = embedding
        if source is not None:
            sources[name] = _fitting(template, tensor, source, placement)
        elif name not in GENERATED:
            raise InputError(
                f"{directory} has no tensor {placement.names.get(name, 'of its kind')} for {name} of {template}",
                hint=_SAME_SHAPE,
            )
    spare = held.keys() - {source.name for source in sources.values()}
    if OUTPUT not in tensors and head is not None and embedding is not None:
        _check_tied(template, directory, head, embedding)
        spare -= {head.name}
    if spare:
        others = f", nor for {len(spare) - 1} more" if len(spare) > 1 else ""
        raise InputError(
            f"{directory} has a tensor {min(spare)}, and {template} none for it{others}",
            hint=f"{_SAME_SHAPE}; an adapter has to be merged into its model first",
        )
    return sources


def _fitting(template: Path, tensor: StoredTensor, source: DirectoryTensor, placement: Placement) -> DirectoryTensor:
    """What of ``source`` goes into ``tensor``: all of it, or the embeddings of the vocabulary's words."""
    if source.type not in TYPES:
        raise InputError(
            f"{source.file}: tensor {source.name} is {source.type}, needed one of {', '.join(TYPES)}",
            hint="save the model in one of these; one that is quantized has to be dequantized first",
        )
    needed = tensor.shape if placement.is_transposed(tensor.name) else tensor.shape[::-1]
    if placement.layout.spare_words and tensor.name in (EMBEDDING, OUTPUT) and source.shape[1:] == needed[1:]:
        source = source.first(min(needed[0], source.shape[0]))
    if source.shape != needed:
        raise InputError(
            f"{source.file}: tensor {source.name} is {list(source.shape)}, needed {list(needed)} for {tensor.name} of "
            f"{template}",
            hint=f"{_SAME_SHAPE}; a resized vocabulary is another shape",
        )
    return source


def _check_tied(template: Path, directory: Path, head: DirectoryTensor, embedding: DirectoryTensor) -> None:
    """Old versions of transformers saved tied output weights as well."""
    if (head.type, head.shape) != (embedding.type, embedding.shape) or not _same(head.stored(), embedding.stored()):
        raise InputError(
            f"{directory} has output weights of its own ({head.name}), those of {template} are its embeddings",
            hint="give two models of the same shape; tied and untied output weights are not the same",
        )


def _type(tensor: StoredTensor, source: DirectoryTensor | None) -> str:
    if source is None:
        return tensor.type
    return "F32" if len(tensor.shape) == 1 or tensor.name in ALWAYS_FLOAT32 else source.type


def _header(template: Path, tensors: Mapping[str, StoredTensor], types: Mapping[str, str]) -> Header:
    source, _ = read_header(template, GgufFile(template, outline=True))
    entries = {key: entry for key, entry in source.entries.items() if not key.startswith("split.")}
    descriptions, offset = [], 0
    for name, tensor in tensors.items():
        descriptions.append(description(name, tensor.shape, type_id(types[name]), offset))
        size = tensor.rows * row_bytes(types[name], tensor.columns)
        offset += size + -size % source.alignment
    return replace(source, tensors=len(tensors), entries=entries, descriptions=b"".join(descriptions))


def _content(directory: Path, source: DirectoryTensor, name: str, kind: str, placement: Placement) -> np.ndarray:
    """The bytes of a tensor, uint8 [rows, bytes per row]."""
    import gguf

    stored = source.stored()
    # Before it is placed, for the sum in a norm's weight is rounded as the converter does it: only F16 in its own type.
    placed = placement.place(name, widened(stored) if kind == "F32" and source.type == "BF16" else stored)
    content = np.ascontiguousarray(placed.astype(np.float32) if kind == "F32" else placed)
    content = content.reshape(-1, content.shape[-1]).view(np.uint8)
    read = gguf.dequantize(content, gguf.GGMLQuantizationType[kind]).reshape(placed.shape)
    returned = placement.returned(name, read)
    if placement.is_sum(name):
        with np.errstate(invalid="ignore"):  # what is no number is for others to find
            agrees = not (np.abs(returned - widened(stored)) > np.spacing(np.abs(placed))).any()
    else:
        agrees = returned.shape == stored.shape and _same(returned, stored)
    if not agrees:
        raise UnsupportedError(
            f"{directory}: transformers would not read {source.name} from {name} of a GGUF of architecture "
            f"{placement.kind} as it is",
            hint="give ORIGINAL as a Hugging Face directory, UNLEARNED as a GGUF, or a converter with --llama-cpp",
        )
    return content


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one shape hold the same weights, bit for bit, whatever type they are stored in."""
    for start in range(0, len(one), ROWS_AT_ONCE):
        first, second = (np.ascontiguousarray(widened(array[start : start + ROWS_AT_ONCE])) for array in (one, other))
        if not np.array_equal(first.view(np.uint32), second.view(np.uint32)):
            return False
    return True
