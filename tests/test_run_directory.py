"""The run directory: what is skipped, what is built again, and what every kind of interruption leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gguf_forget import run_directory
from gguf_forget.errors import InputError
from gguf_forget.run_directory import (
    RunDirectory,
    StageResult,
    read_json,
    write_json_atomically,
)
from gguf_forget.whole_file import sha256_file

INPUTS = {"config": {"seed": 0, "share": 0.03}, "model": "abc", "types": ["F16", "Q4_0"]}


class Builder:
    """Writes two files, one in a folder, and counts how often it was called."""

    def __init__(self, content: bytes = b"weights") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        assert list(directory.iterdir()) == []
        (directory / "tensors").mkdir()
        (directory / "tensors" / "down.bin").write_bytes(self.content)
        (directory / "table.json").write_text("[]")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, the lock aside; stage.json without its times."""
    found = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.is_file() and relative != ".lock":
            found[relative] = path.read_bytes()
            if path.name == "stage.json":
                record = read_json(path)
                found[relative] = repr({key: record[key] for key in record if key not in TIMES}).encode()
    return found


TIMES = ("started", "finished")


def test_a_stage_is_built_with_a_record_of_what_went_in_and_came_out(tmp_path: Path) -> None:
    result = RunDirectory(tmp_path / "runs" / "one").stage("attribute", INPUTS, Builder())
    folder = tmp_path / "runs" / "one" / "attribute"
    assert result == StageResult("attribute", folder, False, result.fingerprint, result.outputs)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "attribute"]
    record = read_json(folder / "stage.json")
    assert record["schema_version"] == 1
    assert record["inputs"] == INPUTS
    assert record["fingerprint"] == result.fingerprint
    assert record["outputs"] == result.outputs
    assert record["outputs"] == {
        "table.json": {
            "bytes": 2,
            "sha256": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
        },
        "tensors/down.bin": {"bytes": 7, "sha256": sha256_file(folder / "tensors" / "down.bin")},
    }
    assert record["started"] <= record["finished"]


def test_an_unchanged_stage_is_skipped(tmp_path: Path) -> None:
    builder = Builder()
    first = RunDirectory(tmp_path).stage("export", INPUTS, builder)
    before = (tmp_path / "export" / "stage.json").read_bytes()
    # Key order and the kind of sequence are no difference.
    same = {"types": ("F16", "Q4_0"), "model": "abc", "config": {"share": 0.03, "seed": 0}}
    again = RunDirectory(tmp_path).stage("export", same, builder)
    assert builder.calls == 1
    assert (first.skipped, again.skipped) == (False, True)
    assert (again.outputs, again.fingerprint) == (first.outputs, first.fingerprint)
    assert again.outputs_hash == first.outputs_hash
    assert (tmp_path / "export" / "stage.json").read_bytes() == before


@pytest.mark.parametrize(
    "changed",
    [
        {**INPUTS, "model": "abe"},
        {**INPUTS, "config": {"seed": 1, "share": 0.03}},
        {**INPUTS, "types": ["Q4_0", "F16"]},
        {**INPUTS, "more": None},
        {"config": INPUTS["config"], "model": "abc"},
    ],
)
def test_a_changed_input_builds_again(tmp_path: Path, changed: dict[str, Any]) -> None:
    first = RunDirectory(tmp_path).stage("export", INPUTS, Builder(b"old"))
    second = RunDirectory(tmp_path).stage("export", changed, Builder(b"new"))
    assert not second.skipped
    assert second.fingerprint != first.fingerprint
    assert second.outputs_hash != first.outputs_hash
    assert (tmp_path / "export" / "tensors" / "down.bin").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "export"]


def cut_by_one_byte(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip_one_bit(file: Path) -> None:
    times = file.stat()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("damage", [cut_by_one_byte, flip_one_bit, Path.unlink])
@pytest.mark.parametrize("name", ["tensors/down.bin", "table.json"])
def test_a_damaged_output_builds_again(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    builder = Builder()
    RunDirectory(tmp_path).stage("export", INPUTS, builder)
    whole = contents(tmp_path)
    damage(tmp_path / "export" / name)
    assert RunDirectory(tmp_path).current("export", INPUTS) is None
    assert not RunDirectory(tmp_path).stage("export", INPUTS, builder).skipped
    assert builder.calls == 2
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"schema_version": 1, "fingerprint": null}'])
def test_a_damaged_record_builds_again(tmp_path: Path, record: str) -> None:
    builder = Builder()
    RunDirectory(tmp_path).stage("export", INPUTS, builder)
    (tmp_path / "export" / "stage.json").write_text(record)
    assert not RunDirectory(tmp_path).stage("export", INPUTS, builder).skipped
    assert RunDirectory(tmp_path).stage("export", INPUTS, builder).skipped


def test_a_record_of_another_schema_builds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDirectory(tmp_path).stage("export", INPUTS, Builder())
    monkeypatch.setattr(run_directory, "SCHEMA_VERSION", 2)
    assert RunDirectory(tmp_path).current("export", INPUTS) is None


def test_the_same_inputs_under_another_name_are_another_stage(tmp_path: Path) -> None:
    one = RunDirectory(tmp_path).stage("one", INPUTS, Builder())
    two = RunDirectory(tmp_path).stage("two", INPUTS, Builder())
    assert one.fingerprint != two.fingerprint
    assert one.outputs_hash == two.outputs_hash


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("nan in the loss"), SystemExit(1)])
@pytest.mark.parametrize("previous", [False, True])
def test_an_interrupted_build_leaves_only_what_was_there(tmp_path: Path, error: BaseException, previous: bool) -> None:
    if previous:
        RunDirectory(tmp_path).stage("export", INPUTS, Builder(b"old"))
    before = contents(tmp_path)

    def build(directory: Path) -> None:
        (directory / "half.bin").write_bytes(b"1")
        raise error

    with pytest.raises(type(error)):
        RunDirectory(tmp_path).stage("export", {"new": 1}, build)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir() if ".partial" in path.name] == []
    if previous:
        assert RunDirectory(tmp_path).stage("export", INPUTS, Builder()).skipped


@pytest.mark.parametrize("failing", [1, 2])
def test_an_interrupt_while_the_new_result_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    RunDirectory(tmp_path).stage("export", INPUTS, Builder(b"old"))
    before = contents(tmp_path)
    rename, calls = os.rename, []

    def interrupted_rename(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted_rename)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory(tmp_path).stage("export", {"new": 1}, Builder(b"new"))
    assert contents(tmp_path) == before


def test_a_result_left_aside_by_a_dead_process_is_put_back(tmp_path: Path) -> None:
    builder = Builder()
    RunDirectory(tmp_path).stage("export", INPUTS, builder)
    before = contents(tmp_path)
    # As after a power cut between the two renames.
    os.rename(tmp_path / "export", tmp_path / ".export.old-71")
    (tmp_path / ".export.partial-71").mkdir()
    (tmp_path / ".export.partial-71" / "half.bin").write_bytes(b"1")
    assert RunDirectory(tmp_path).stage("export", INPUTS, builder).skipped
    assert contents(tmp_path) == before
    # And as after one just behind the second rename.
    (tmp_path / ".export.old-72").mkdir()
    assert RunDirectory(tmp_path).stage("export", INPUTS, builder).skipped
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "export"]


KILLED = """
import sys, time
from pathlib import Path
from gguf_forget.run_directory import RunDirectory

def build(directory: Path) -> None:
    (directory / "first.bin").write_bytes(bytes(1000))
    if sys.argv[2] == "hang":
        print("ready", flush=True)
        time.sleep(60)
    (directory / "second.bin").write_bytes(b"end")

with RunDirectory(sys.argv[1]) as run:
    run.stage("before", {}, lambda directory: (directory / "a").write_text("a") and None)
    run.stage("unlearn", {"seed": 0}, build)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program in a process of its own; what still runs at the end is killed."""
    processes = []

    # A shell starts what it puts in the background with SIGINT ignored, and Python leaves it so.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"

    def start(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", heard + program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def started(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], end: signal.Signals
) -> None:
    assert start(KILLED, tmp_path / "whole", "run").wait() == 0
    killed = start(KILLED, tmp_path / "run", "hang")
    started(killed)
    killed.send_signal(end)
    assert killed.wait() != 0
    assert sorted(path.name for path in (tmp_path / "run" / "before").iterdir()) == ["a", "stage.json"]
    assert not (tmp_path / "run" / "unlearn").exists()
    assert start(KILLED, tmp_path / "run", "run").wait() == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_two_processes_cannot_work_in_one_directory(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(KILLED, tmp_path, "hang")
    started(holder)
    with pytest.raises(InputError) as caught:
        RunDirectory(tmp_path).stage("before", {}, Builder())
    assert f"{tmp_path / '.lock'} held by process {holder.pid}" in caught.value.message
    assert caught.value.hint
    holder.kill()
    holder.wait()
    assert RunDirectory(tmp_path).stage("before", {}, Builder()).skipped


def test_the_lock_is_held_through_a_whole_run_and_then_free(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.stage("one", {}, Builder())
        with pytest.raises(InputError, match=f"held by process {os.getpid()}"):
            RunDirectory(tmp_path).stage("two", {}, Builder())
        run.stage("two", {}, Builder())
    assert RunDirectory(tmp_path).stage("two", {}, Builder()).skipped


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "big.gguf"), "more free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "more of the disk quota"),
        (RuntimeError("serializing: I/O error: No space left on device (os error 28)"), "more free space"),
    ],
)
def test_a_full_disk_is_explained(tmp_path: Path, error: Exception, words: str) -> None:
    RunDirectory(tmp_path).stage("export", INPUTS, Builder())
    before = contents(tmp_path)

    def build(directory: Path) -> None:
        (directory / "half.bin").write_bytes(b"1")
        raise error

    with pytest.raises(InputError, match=f"cannot write .*needed {words}") as caught:
        RunDirectory(tmp_path).stage("export", {"new": 1}, build)
    assert caught.value.hint
    assert caught.value.__cause__ is error
    assert contents(tmp_path) == before


def test_an_unreadable_input_elsewhere_is_not_called_a_write(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model.gguf")

    with pytest.raises(PermissionError):
        RunDirectory(tmp_path).stage("export", INPUTS, build)


def test_a_directory_that_refuses_writing_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"Read-only file system.*needed a disk that can be written"):
        RunDirectory(tmp_path / "run").stage("export", INPUTS, Builder())


LIMITED = """
import resource, sys
from pathlib import Path
from gguf_forget.errors import InputError
from gguf_forget.run_directory import RunDirectory, write_json_atomically

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    if sys.argv[2] == "stage":
        build = lambda folder: (folder / "big.gguf").write_bytes(bytes(200_000)) and None
        RunDirectory(sys.argv[1]).stage("export", {}, build)
    else:
        write_json_atomically(Path(sys.argv[1]) / "report.json", ["x" * 200_000])
except InputError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize("what", ["stage", "json"])
def test_a_real_limit_on_writing_leaves_nothing(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], what: str
) -> None:
    out, problems = start(LIMITED, tmp_path, what).communicate()
    assert problems == ""
    assert out.startswith(f"2 cannot write {tmp_path}")
    assert "File too large" in out
    assert "ulimit" in out
    assert contents(tmp_path) == {}


def test_a_run_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="found a file, needed a directory"):
        RunDirectory(tmp_path / "run")
    with pytest.raises(InputError, match="needed a directory above it"):
        RunDirectory(tmp_path / "run" / "below").stage("export", INPUTS, Builder())
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_persons_own_files_are_never_replaced(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "export").write_text("mine")
    else:
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    builder = Builder()
    with pytest.raises(InputError, match="which no run made"):
        RunDirectory(tmp_path).stage("export", INPUTS, builder)
    assert builder.calls == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "Export", "a.b"])
def test_a_stage_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="stage name"):
        RunDirectory(tmp_path).stage(name, INPUTS, Builder())


def test_a_stage_cannot_write_the_record_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage\.json"):
        RunDirectory(tmp_path).stage("export", {}, lambda folder: (folder / "stage.json").write_text("") and None)
    assert contents(tmp_path) == {}


def test_json_is_written_sorted_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json_atomically(file, {"b": [1, 2.5, None], "a": "Reykjavík"})
    assert file.read_text(encoding="utf-8") == (
        '{\n  "a": "Reykjavík",\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    )
    assert read_json(file) == {"b": [1, 2.5, None], "a": "Reykjavík"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(file, float("nan"))
    assert read_json(file)["a"] == "Reykjavík"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_keeps_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(b"/models/\xe9.gguf")
    write_json_atomically(tmp_path / "a.json", [path])
    assert read_json(tmp_path / "a.json") == [path]


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b'{"a": ', "no JSON"), (b"\xff", "no JSON")])
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_json(file)
    assert str(file) in caught.value.message
