"""general.* keys of a derived model, and what a model card takes from them."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.derived_names import derived_keys, hub_name
from gguf_forget.llama.scorer import Scorer


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    plain = build_tiny_gguf(folder / "plain.gguf")
    keys = {
        "general.finetune": "Instruct",
        "general.organization": "Somebody",
        "general.source.url": "https://huggingface.co/somebody/tiny/tree/main",
    }
    write_derived(plain, folder / "original.gguf", metadata=keys, tensors={})
    return folder / "original.gguf"


def test_the_derived_file_is_named_after_its_base(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    name = GgufFile(original).value("general.name")
    write_derived(original, out, metadata=derived_keys(original), tensors={})
    fields = gguf.GGUFReader(out).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("general.")}
    assert found["general.name"] == f"{name} Unlearned"
    assert found["general.finetune"] == "Instruct-Unlearned"
    assert found["general.quantized_by"] == "gguf_forget"
    assert found["general.base_model.count"] == 1
    assert fields["general.base_model.count"].types == [gguf.GGUFValueType.UINT32]
    assert found["general.base_model.0.name"] == name
    assert found["general.base_model.0.organization"] == "Somebody"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/somebody/tiny/tree/main"
    assert list(fields)[: len(gguf.GGUFReader(original).fields)] == list(gguf.GGUFReader(original).fields)
    with Scorer(out, cells=32, max_sequences=1) as scorer:
        assert scorer.tokenize("The capital")


def test_the_name_on_the_hub(original: Path, tmp_path: Path) -> None:
    assert hub_name(original) == "somebody/tiny"
    plain = build_tiny_gguf(tmp_path / "plain.gguf")
    assert hub_name(plain) is None
    for key, value, expected in (
        ("general.repo_url", "https://example.org/somebody/tiny", None),
        ("general.source.huggingface.repository", "a/b", "a/b"),
        ("general.url", "https://huggingface.co/a", None),
    ):
        write_derived(plain, tmp_path / "x.gguf", metadata={key: value}, tensors={})
        assert hub_name(tmp_path / "x.gguf") == expected
    assert derived_keys(plain)["general.finetune"] == "Unlearned"
