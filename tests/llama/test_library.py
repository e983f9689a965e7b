"""Loading llama.cpp and catching its log."""

from __future__ import annotations

import ctypes
import sys

import pytest

from gguf_forget.errors import LlamaError
from gguf_forget.llama import library
from gguf_forget.llama.library import Log, captured_log, load, version


def test_version_names_the_package_and_the_processor() -> None:
    import llama_cpp

    assert version()["llama_cpp_python"] == llama_cpp.__version__
    assert "CPU" in version()["system_info"]


def fail() -> None:
    load().llama_model_load_from_file(b"/no/such/model.gguf", load().llama_model_default_params())


def test_the_log_is_captured_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_log() as outer:
        with captured_log() as inner:
            fail()
        assert outer.text == ""
        fail()
    fail()
    assert "/no/such/model.gguf" in inner.text
    assert "/no/such/model.gguf" in str(inner.reason())
    assert outer.text == inner.text
    assert capfd.readouterr() == ("", "")


def test_capture_survives_another_callback(capfd: pytest.CaptureFixture[str]) -> None:
    module = load()
    foreign = module.llama_log_callback(lambda level, text, data: None)
    module.llama_log_set(foreign, ctypes.c_void_p(0))
    with captured_log() as log:
        fail()
    fail()
    assert "/no/such/model.gguf" in log.text
    assert capfd.readouterr() == ("", "")


def test_reason_prefers_errors_and_joins_continued_lines() -> None:
    info, error, continued = 2, 4, 5
    log = Log([(info, "loading\n"), (error, "bad "), (continued, "magic\n"), (error, "gave up\n"), (info, "bye\n")])
    assert log.reason() == "bad magic; gave up"
    assert Log([(info, "first\n"), (info, "last\n")]).reason() == "last"
    assert Log([]).reason() is None


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("Failed to load shared library")])
def test_a_missing_or_broken_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "llama_cpp":
                raise error

    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(LlamaError, match="cannot be imported") as caught:
        library._library.__wrapped__()
    assert str(error) in str(caught.value.cause)
    assert "C++ compiler" in str(caught.value.hint)
