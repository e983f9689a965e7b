"""A GGUF copied with other metadata, with more tensors, or in several parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

_WRITTEN_BY_THE_WRITER = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


def copy_with(
    source: Path,
    target: Path,
    values: Mapping[str, str | int | bool | None],
    *,
    tensors_a_part: int = 0,
    tensors_before: Mapping[str, np.ndarray] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Path:
    """Copy a GGUF, replacing keys that it has (None: leaving them out); return the first file written.

    numbers: keys that it has not, of 32 bits.

    tensors_before: more tensors, which come first.

    With ``tensors_a_part`` the copy is split into ``target-00001-of-0000N.gguf`` and so on.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=tensors_a_part)
    for name, field in reader.fields.items():
        if name in _WRITTEN_BY_THE_WRITER or (name in values and values[name] is None):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, values.get(name, field.contents()), kind, element)
    for name, number in (numbers or {}).items():
        writer.add_uint32(name, number)
    for name, weights in (tensors_before or {}).items():
        writer.add_tensor(name, weights)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.stem}-*-of-*.gguf"))[0] if tensors_a_part else target
