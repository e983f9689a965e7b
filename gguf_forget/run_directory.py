"""A run directory: one folder a stage, each finished as a whole or absent, and skipped when nothing changed.

    runs/europe/
      .lock              held while a process works here; names its process id
      attribute/         a finished stage: its files and ...
        stage.json       ... what went in (inputs, fingerprint) and what came out (bytes, sha256)
      .export.partial-71 a stage under way; removed when it fails, or by the next process
      .export.old-71     the previous result while the new one takes its place

A stage counts as done only if the fingerprint of its inputs is equal and every output file still has the
recorded size and hash. Nothing looks at file times.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.whole_file import sha256_file

SCHEMA_VERSION = 1
"""Version of stage.json. A stage recorded under another version is built again."""

STAGE_FILE = "stage.json"


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        path: the stage's folder, which holds its outputs.
        skipped: whether an earlier result was found unchanged.
        fingerprint: sha256 of the stage's name and inputs.
        outputs: path relative to the folder (with ``/``) -> ``{"bytes": int, "sha256": str}``.
    """

    name: str
    path: Path
    skipped: bool
    fingerprint: str
    outputs: Mapping[str, Mapping[str, Any]]

    @property
    def outputs_hash(self) -> str:
        """sha256 over all outputs: what a later stage puts among its own inputs."""
        return _sha256_json(dict(self.outputs))


class RunDirectory:
    """The folder of one run. Created, and locked against other processes, when the first stage is built.

    As a context manager it holds the lock from start to end: ``with RunDirectory(path) as run: ...``.

    Raises:
        InputError: the path is no directory, cannot be written, or another process works in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        if self.path.exists() and not self.path.is_dir():
            raise InputError(
                f"the run directory {self.path}: found a file, needed a directory or a path that is free",
                hint="choose another path for the run",
            )

    def __enter__(self) -> RunDirectory:
        self._acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    def current(self, name: str, inputs: Mapping[str, Any]) -> StageResult | None:
        """The finished stage, if it was made from these very inputs and its files are whole; else None."""
        _check_name(name)
        folder = self.path / name
        fingerprint = _fingerprint(name, inputs)
        try:
            record = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
            if record["schema_version"] != SCHEMA_VERSION or record["fingerprint"] != fingerprint:
                return None
            outputs: dict[str, dict[str, Any]] = record["outputs"]
            for relative, expected in outputs.items():
                file = folder / relative
                if file.stat().st_size != expected["bytes"] or sha256_file(file) != expected["sha256"]:
                    return None
        except (OSError, InputError, ValueError, KeyError, TypeError, AttributeError):
            return None  # a missing file, or a record that is not one of ours: the stage is built again
        return StageResult(name, folder, True, fingerprint, outputs)

    def stage(self, name: str, inputs: Mapping[str, Any], build: Callable[[Path], None]) -> StageResult:
        """The finished stage: found unchanged, or built now.

        Args:
            name: folder of the stage: lower-case letters, digits, ``-`` and ``_``.
            inputs: all that decides the result, as JSON: configuration, hashes of input files and of upstream
                stages (``StageResult.outputs_hash``), tool versions.
            build: writes every output into the empty directory that it is given.

        Raises:
            InputError: another process works here, the disk is full or cannot be written, or the stage's
                place is taken by something that no run made.
            Whatever ``build`` raises. The previous result, if any, is then still in place.
        """
        _check_name(name)
        with self._locked():
            done = self.current(name, inputs)
            if done is not None:
                return done
            self._refuse_foreign(self.path / name)
            partial = self.path / f".{name}.partial-{os.getpid()}"
            try:
                with _explained(partial):
                    started = _now()
                    partial.mkdir()
                    build(partial)
                    result = self._record(name, inputs, partial, started)
                    self._publish(partial, result.path)
            except BaseException:  # KeyboardInterrupt too: nothing half-made stays behind
                shutil.rmtree(partial, ignore_errors=True)
                raise
            return result

    def _refuse_foreign(self, folder: Path) -> None:
        """A stage replaces its folder: never one that holds a person's own files."""
        if not folder.exists() or (folder / STAGE_FILE).is_file():
            return
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(
                f"the stage {folder.name} has no place in {self.path}: found {folder}, which no run made, "
                f"needed that name free",
                hint="move it away, or choose another run directory",
            )

    def _record(self, name: str, inputs: Mapping[str, Any], partial: Path, started: str) -> StageResult:
        """Write stage.json beside the outputs, and everything to the disk itself."""
        outputs: dict[str, dict[str, Any]] = {}
        folders = [partial]
        for entry in sorted(partial.rglob("*")):
            if entry.is_dir():
                folders.append(entry)
                continue
            _fsync(entry)
            relative = entry.relative_to(partial).as_posix()
            if relative == STAGE_FILE:
                raise ValueError(f"stage {name!r} wrote {STAGE_FILE}, which is the run directory's own")
            outputs[relative] = {"bytes": entry.stat().st_size, "sha256": sha256_file(entry)}
        fingerprint = _fingerprint(name, inputs)
        write_json_atomically(
            partial / STAGE_FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "stage": name,
                "fingerprint": fingerprint,
                "inputs": inputs,
                "outputs": outputs,
                # For people; no hash covers these two.
                "started": started,
                "finished": _now(),
            },
        )
        for folder in folders:
            _fsync(folder)
        return StageResult(name, self.path / name, False, fingerprint, outputs)

    def _publish(self, partial: Path, final: Path) -> None:
        """Put a finished folder in its place; the one that was there goes only once the new one is in.

        Directories cannot be swapped in one step everywhere, so there is a moment with neither in place.
        A process that dies just then leaves the old one aside, and ``_clean`` puts it back.
        """
        old = self.path / f".{final.name}.old-{os.getpid()}"
        try:
            if final.exists():
                os.rename(final, old)
            os.rename(partial, final)
        except BaseException:
            if old.exists() and not final.exists():
                os.rename(old, final)
            raise
        _fsync(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what dead processes left. The lock is held, so whatever is left belongs to no live one."""
        for entry in self.path.iterdir():
            match = re.fullmatch(r"\.(?P<name>.+)\.(?P<kind>partial|old)-\d+", entry.name)
            if match is None:
                continue
            if match["kind"] == "old" and not (self.path / match["name"]).exists():
                os.rename(entry, self.path / match["name"])
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is not None:
            yield
            return
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        path = self.path / ".lock"
        with _explained(path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
                    raise InputError(
                        f"the run directory {self.path} is in use: found {path} held by process {holder}, "
                        "needed it free",
                        hint="wait for that process to end, or choose another run directory",
                    ) from error
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                self._clean()
            except BaseException:
                os.close(descriptor)
                raise
        self._lock = descriptor

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the lock goes with its descriptor; the file stays, or two could hold "it"
            self._lock = None


def read_json(path: Path) -> Any:
    """The JSON value in a UTF-8 file.

    Raises:
        InputError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: found {error.strerror or error}, needed a JSON file",
            hint="check the path and its permissions",
        ) from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(
            f"{path}: found a file that is no JSON, needed a JSON file",
            cause=str(error),
            hint="the file may have been cut short or edited; remove it and run the stage again",
        ) from error


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, keys sorted, so that the file is whole at every moment: old or new.

    Raises:
        InputError: the disk is full or cannot be written.
        ValueError: ``value`` holds NaN or an infinity, which JSON has no words for.
    """
    path = Path(path)
    content = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with _explained(path):
        try:
            # A path may hold bytes that are no UTF-8 (lone surrogates): their escape is JSON's own.
            with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


# Reasons for which a write fails that a user can do something about: what was needed, and what to do.
_UNWRITABLE = {
    errno.ENOSPC: ("more free space", "free some space, or choose a run directory on another disk"),
    errno.EDQUOT: ("more of the disk quota", "remove other files, or choose a directory on another disk"),
    errno.EFBIG: ("a larger limit on file sizes", "raise the limit (ulimit -f), or use a disk without one"),
    errno.EROFS: ("a disk that can be written", "choose a run directory on another disk"),
    errno.EACCES: ("permission to write", "change the permissions, or choose another run directory"),
    errno.EPERM: ("permission to write", "change the permissions, or choose another run directory"),
    errno.ENOTDIR: ("a directory above it, not a file", "choose another run directory"),
    errno.ENOTSUP: ("a file system with locks", "choose a run directory on a local disk"),
    errno.ENOLCK: ("a file system with locks", "choose a run directory on a local disk"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at ``path`` into ``InputError``; other errors pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        code = _write_errno(error, path)
        if code is None:
            raise
        needed, hint = _UNWRITABLE[code]
        place = getattr(error, "filename", None) or path
        message = f"cannot write {place}: found “{os.strerror(code)}”, needed {needed}"
        if code == errno.ENOSPC:
            message += f" than the {_free_bytes(path):,} bytes left"
        raise InputError(message, cause=str(error), hint=hint) from error


def _write_errno(error: Exception, path: Path) -> int | None:
    """Which of ``_UNWRITABLE`` the error is about, or None."""
    if isinstance(error, OSError):
        if error.errno not in _UNWRITABLE:
            return None
        if error.errno in _FULL or not isinstance(error.filename, (str, Path)):
            return error.errno
        # The same numbers come from reading an input that lies elsewhere: that is not ours to explain.
        place, folder = os.path.abspath(error.filename), os.path.abspath(path.parent)
        return error.errno if os.path.commonpath([place, folder]) in (place, folder) else None
    # Libraries in other languages (safetensors, torch) put a full disk into the text of errors of their own.
    return next((code for code in _FULL if os.strerror(code) in str(error)), None)


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"stage name {name!r}: needed lower-case letters, digits, - and _")


def _fingerprint(name: str, inputs: Mapping[str, Any]) -> str:
    return _sha256_json({"schema_version": SCHEMA_VERSION, "stage": name, "inputs": inputs})


def _sha256_json(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _fsync(path: Path) -> None:
    """Have a file's or directory's content on the disk itself before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
