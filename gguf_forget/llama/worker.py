"""The child process: it waits for a call, makes it, and sends back what came of it.

Frames in both directions are a length and a pickle. A request is ``("open", path, options)``, ``("ask", name, args,
keywords)`` about the scorer opened before, or ``("run", function, args, keywords)``. Replies are any number of
``("progress", (done, total))`` and then ``("result", value)`` or ``("error", (exception, traceback as text))``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import struct
import threading
import traceback
from typing import IO, Any

_LENGTH = struct.Struct("<Q")


def write_frame(stream: IO[bytes], value: object) -> None:
    """Send one value."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """The next value.

    Raises:
        EOFError: the other side is gone.
    """
    return pickle.loads(_read(stream, *_LENGTH.unpack(_read(stream, _LENGTH.size))))


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> None:
    """Serve the process that started this one, over stdin and stdout, until it is gone."""
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is for the log, not for the parent's protocol
    threading.Thread(target=_leave_with_parent, args=(requests.fileno(),), daemon=True).start()
    worker = _Worker(replies)
    with contextlib.suppress(EOFError, BrokenPipeError):  # of the two pipes alone: the work may raise such as well
        while True:
            try:
                request = read_frame(requests)
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:  # a request that cannot be read here
                write_frame(replies, ("error", (_sendable(error), traceback.format_exc())))
                continue
            try:
                reply = ("result", worker.do(*request))
            except Exception as error:
                reply = ("error", (_sendable(error), traceback.format_exc()))
            try:
                write_frame(replies, reply)
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:  # a result that cannot be sent
                write_frame(replies, ("error", (_sendable(error), traceback.format_exc())))


def _leave_with_parent(stdin: int) -> None:
    """End the process, in the middle of a computation too, once nobody holds the other end of ``stdin``."""
    poll = select.poll()
    poll.register(stdin, select.POLLHUP)
    poll.poll()
    os._exit(0)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception may refuse in any way it likes
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Worker:
    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._scorer: Any = None

    def do(self, kind: str, what: Any, *arguments: Any) -> Any:
        if kind == "open":
            from .scorer import Scorer

            self._scorer = Scorer(what, progress=self._progress, **arguments[0])
            return self._scorer.vocabulary_size
        positional, keywords = arguments
        if kind == "run":
            return what(*positional, **keywords)
        attribute = getattr(self._scorer, what)
        return attribute(*positional, **keywords) if callable(attribute) else attribute

    def _progress(self, done: int, total: int) -> None:
        write_frame(self._replies, ("progress", (done, total)))
