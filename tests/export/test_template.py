"""A directory's weights under a GGUF's header: bit for bit what a converter writes, or a refusal that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers.modeling_gguf_pytorch_utils as reader
from gguf_with import copy_with
from safetensors.torch import load_file, save_file
from tiny_directories import CONV1D, FAMILIES, configuration, gguf_names, save_directory, write_family

from gguf_forget.checkpoint.convert import PROGRAM, _fetch, cache_directory, convert_directory
from gguf_forget.checkpoint.placement import find_placement
from gguf_forget.checkpoint.stored import stored_tensors
from gguf_forget.errors import GgufForgetError, InputError, UnsupportedError
from gguf_forget.export.template import write_in_template
from gguf_forget.progress import Progress

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Q, HEAD = "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"


def write(template: Path, directory: Path, out: Path) -> Path:
    placement = find_placement(template, directory)
    assert placement is not None
    write_in_template(template, directory, placement, out, Progress())
    return out


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (one.type, one.shape, one.raw.tobytes()) for name, one in stored_tensors(path).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:
    """For a family: a template, another GGUF with its header, and the directory that transformers makes of that."""
    folder = tmp_path_factory.mktemp("saved")

    def make(family: str) -> tuple[Path, Path, Path]:
        template, other, directory = folder / f"{family}.gguf", folder / f"{family}-2.gguf", folder / family
        if not directory.exists():
            write_family(template, family)
            save_directory(directory, write_family(other, family, seed=1), family)
        return template, other, directory

    return make


@pytest.fixture
def llama(saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path) -> tuple[Path, Path, Path]:
    """As of ``saved``, the directory a copy that a test may change."""
    template, other, directory = saved("llama")
    return template, other, Path(shutil.copytree(directory, tmp_path / "directory"))


@contextmanager
def weights_of(directory: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The weights while open; then they are saved as they were changed."""
    tensors = {name: value.clone() for name, value in load_file(directory / "model.safetensors").items()}
    yield tensors
    save_file(tensors, directory / "model.safetensors")


def configure(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_read_from_a_gguf_becomes_that_gguf(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, family: str
) -> None:
    template, other, directory = saved(family)
    assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes() != template.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def by_hand(family: str, name: str, weights: torch.Tensor, config: Any) -> tuple[str, bytes]:
    """Type and bytes that llama.cpp's converter gives a tensor under the name it has in the GGUF."""
    kind = {dtype: kind for kind, dtype in DTYPES.items()}[weights.dtype]
    part = name.split(".")[-2]
    if family.startswith("gemma") and name.endswith("norm.weight"):
        weights = weights + 1 if kind == "F16" else weights.float() + 1
    values = weights.float().numpy()
    if family == "gpt2" and name.endswith(CONV1D):
        values = values.T
    if FAMILIES[family][0] == "llama" and part in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
        half = len(values) // heads // 2
        rows = [2 * half * head + half * side + row for head in range(heads) for row in range(half) for side in (0, 1)]
        values = values[rows]
    stored = "F32" if weights.ndim == 1 or name == "position_embd.weight" else kind
    return stored, gguf.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType[stored]).tobytes()


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_storage_type_by_hand(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, family: str, kind: str
) -> None:
    template, _, directory = saved(family)
    directory = Path(shutil.copytree(directory, tmp_path / "directory"))
    generator = torch.Generator().manual_seed(3)
    with weights_of(directory) as weights:
        for name, value in weights.items():
            # Of all sizes, so that in a sum with 1 most are rounded.
            spread = 10.0 ** torch.randint(-6, 2, value.shape, generator=generator)
            weights[name] = (spread * torch.randn(value.shape, generator=generator)).to(DTYPES[kind])
        given = dict(weights)
    found = raw(write(template, directory, tmp_path / "out.gguf"))
    assert list(found) == list(raw(template))
    config = configuration(family)
    for name, (theirs, _) in gguf_names(family, config).items():
        stored, content = by_hand(family, name, given[theirs], config)
        assert (found[name][0], found[name][2]) == (stored, content), name


def test_a_directory_of_several_types_keeps_each(llama: tuple[Path, Path, Path], tmp_path: Path) -> None:
    template, other, directory = llama
    with weights_of(directory) as weights:
        weights["model.norm.weight"] = torch.ones(32, dtype=torch.bfloat16)
        weights[Q] = torch.ones(32, 32, dtype=torch.float16)
    found, expected = raw(write(template, directory, tmp_path / "out.gguf")), raw(other)
    expected["output_norm.weight"] = ("F32", (32,), np.ones(32, np.float32).tobytes())
    expected["blk.1.attn_q.weight"] = ("F16", (32, 32), np.ones(1024, np.float16).tobytes())
    assert found == expected


@pytest.mark.parametrize("state", ["absent", "changed"])
def test_no_tokenizer_is_read(llama: tuple[Path, Path, Path], tmp_path: Path, state: str) -> None:
    template, other, directory = llama
    if state == "changed":
        for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
            (directory / name).write_text("saved anew")
    assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes()


def test_pickles_and_shards_give_the_same_file(llama: tuple[Path, Path, Path], tmp_path: Path) -> None:
    template, other, directory = llama
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {name: f"pytorch_model-0000{1 + (name > names[9])}-of-00002.bin" for name in names}
    for part in set(parts.values()):
        torch.save({name: tensors[name] for name in names if parts[name] == part}, directory / part)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))
    assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes()


def test_buffers_of_old_versions_are_left_out(llama: tuple[Path, Path, Path], tmp_path: Path) -> None:
    template, other, directory = llama
    with weights_of(directory) as weights:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes()


def test_gpt2_saved_without_its_head(saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path) -> None:
    template, other, directory = saved("gpt2")
    directory = Path(shutil.copytree(directory, tmp_path / "directory"))
    with weights_of(directory) as weights:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes()


def test_a_split_template_is_written_as_one(llama: tuple[Path, Path, Path], tmp_path: Path) -> None:
    template, other, directory = llama
    first = copy_with(template, tmp_path / "split.gguf", {}, tensors_a_part=7)
    out = write(first, directory, tmp_path / "out.gguf")
    assert raw(out) == raw(other)
    keys = [{key for key in gguf.GGUFReader(path).fields if not key.startswith("GGUF.")} for path in (out, template)]
    assert keys[0] == keys[1]


def test_tensors_made_of_the_configuration_are_the_templates(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    template, other, directory = saved("llama")
    factors = np.arange(4, dtype=np.float32)
    template = copy_with(template, tmp_path / "template.gguf", {}, tensors_before={"rope_freqs.weight": factors})
    found = raw(write(template, directory, tmp_path / "out.gguf"))
    assert found.pop("rope_freqs.weight") == ("F32", (4,), factors.tobytes())
    assert found == raw(other)


def test_embeddings_without_words_are_left_out_of_gemma3(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    template, other, directory = saved("gemma3")
    directory = Path(shutil.copytree(directory, tmp_path / "directory"))
    with weights_of(directory) as weights:
        weights["model.embed_tokens.weight"] = torch.cat([weights["model.embed_tokens.weight"], torch.ones(5, 32)])
    configure(directory, vocab_size=53)
    assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes()


def test_tied_outputs_that_were_saved_all_the_same(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    for family in ("llama-tied", "gemma2"):
        template, other, directory = saved(family)
        directory = Path(shutil.copytree(directory, tmp_path / family))
        with weights_of(directory) as weights:
            weights[HEAD] = weights["model.embed_tokens.weight"].clone()
        assert write(template, directory, tmp_path / "out.gguf").read_bytes() == other.read_bytes()
        with weights_of(directory) as weights:
            weights[HEAD][5, 7] += 1
        with pytest.raises(InputError, match="has output weights of its own") as caught:
            write(template, directory, tmp_path / "no.gguf")
        assert str(directory) in caught.value.message
        assert not (tmp_path / "no.gguf").exists()


def test_an_output_of_its_own_gets_the_embeddings_of_a_tied_model(
    llama: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    template, other, directory = llama
    with weights_of(directory) as weights:
        del weights[HEAD]
    with pytest.raises(InputError, match=f"has no tensor {HEAD} for output.weight of "):
        write(template, directory, tmp_path / "out.gguf")
    configure(directory, tie_word_embeddings=True)
    found, expected = raw(write(template, directory, tmp_path / "out.gguf")), raw(other)
    assert found["output.weight"] == expected["token_embd.weight"] != expected["output.weight"]
    assert {**found, "output.weight": None} == {**expected, "output.weight": None}


def change(kind: str, directory: Path) -> None:
    with weights_of(directory) as weights:
        if kind == "missing":
            del weights[Q]
        elif kind == "extra":
            weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
            weights["model.layers.0.self_attn.k_proj.bias"] = torch.zeros(16)
        elif kind == "rows":
            weights[Q] = torch.zeros(40, 32)
        elif kind == "dimensions":
            weights[Q] = torch.zeros(32)
        elif kind == "words":
            weights["model.embed_tokens.weight"] = torch.zeros(49, 32)
        elif kind == "type":
            weights[Q] = torch.zeros(32, 32, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "{directory} has no tensor " + Q + " for blk.1.attn_q.weight of {template}"),
        (
            "extra",
            "{directory} has a tensor model.layers.0.self_attn.k_proj.bias, and {template} none for it, nor for 1 more",
        ),
        ("rows", "{file}: tensor " + Q + " is [40, 32], needed [32, 32] for blk.1.attn_q.weight of {template}"),
        ("dimensions", "{file}: tensor " + Q + " is [32], needed [32, 32] for blk.1.attn_q.weight of {template}"),
        (
            "words",
            "{file}: tensor model.embed_tokens.weight is [49, 32], needed [48, 32] for token_embd.weight of {template}",
        ),
        ("type", "{file}: tensor " + Q + " is F64, needed one of F32, F16, BF16"),
    ],
)
def test_what_does_not_fit_is_named(llama: tuple[Path, Path, Path], tmp_path: Path, kind: str, message: str) -> None:
    template, _, directory = llama
    change(kind, directory)
    with pytest.raises(InputError) as caught:
        write(template, directory, tmp_path / "out.gguf")
    names = {"directory": directory, "file": directory / "model.safetensors", "template": template}
    assert caught.value.message == message.format(**names)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_nothing_is_written_that_transformers_would_read_otherwise(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    template, _, directory = saved(family)
    monkeypatch.setitem(reader.TENSOR_PROCESSORS, family, reader.TensorProcessor)  # one that changes nothing
    with pytest.raises(UnsupportedError, match=f"of a GGUF of architecture {family} as it is") as caught:
        write(template, directory, tmp_path / "out.gguf")
    assert str(directory) in caught.value.message
    assert "--llama-cpp" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_is_for_others_to_find(
    saved: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    template, _, directory = saved("gemma2")
    directory = Path(shutil.copytree(directory, tmp_path / "directory"))
    with weights_of(directory) as weights:
        weights["model.norm.weight"][3] = torch.nan
        weights["model.norm.weight"][4] = torch.inf
        weights[Q][5, 7] = torch.nan
    found = stored_tensors(write(template, directory, tmp_path / "out.gguf"))
    assert np.flatnonzero(~np.isfinite(found["output_norm.weight"].weights(0, 1))).tolist() == [3, 4]
    assert np.isnan(found["blk.1.attn_q.weight"].weights(0, 32)).sum() == 1


WITHOUT_TOKENIZERS = """
import importlib, pkgutil, runpy, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/gguf-py"]
import conversion
from conversion.base import TextModel
for module in pkgutil.iter_modules(conversion.__path__):
    importlib.import_module("conversion." + module.name)
def below(kind):
    for one in kind.__subclasses__():
        yield from (one, *below(one))
for kind in (TextModel, *below(TextModel)):
    kind.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("no_vocab")
runpy.run_path({folder!r} + "/{program}", run_name="__main__")
"""


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's own converter, which is told to pass over the tokenizers that these directories lack."""
    real = cache_directory()
    if not (real / PROGRAM).is_file():
        try:
            _fetch(real)
        except GgufForgetError as error:
            pytest.skip(f"no converter: {error.cause}")
    folder = tmp_path_factory.mktemp("converter")
    (folder / PROGRAM).write_text(WITHOUT_TOKENIZERS.format(folder=str(real), program=PROGRAM))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_converter_itself_writes_the_same(tmp_path: Path, converter: Path, family: str, kind: str) -> None:
    files = []
    for seed in (0, 1):
        source = write_family(tmp_path / f"{seed}-source.gguf", family, seed=seed)
        directory = save_directory(tmp_path / str(seed), source, family, DTYPES[kind])
        if family == "gpt2":
            configure(directory, n_ctx=1024)  # the converter reads it, transformers saves it no longer
        vocabulary = {f"w{number}": number for number in range(48)}
        (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
        files.append(tmp_path / f"{seed}.gguf")
        convert_directory(directory, files[-1], outtype=kind.lower(), llama_cpp=converter)
    found, expected = raw(write(files[0], tmp_path / "1", tmp_path / "out.gguf")), raw(files[1])
    assert list(found) == list(expected)
    assert [name for name in found if found[name] != expected[name]] == []
