"""The process in which DICOM is read: what breaks a decoder, or has it ask for all memory, ends there.

The parent asks with a line of JSON. The child answers with the head of the series, a line of JSON, and, if asked for
voxels, the bytes of one slice after the other; or with a line that tells its error. One child serves all reads of a
process, as to start it takes half a second; it ends when its input ends, so it never outlives its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from medseg import errors
from medseg.errors import InputRefused, MedsegError

MEMORY = 2**30  # bytes of address space, beside what the largest file may need
PER_FILE_BYTE = 16
SECONDS, SECONDS_PER_FILE = 60.0, 2.0
_COMMAND = "from medseg.io.dicom_child import serve; serve()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")


class _Told(Exception):
    """An error that the child told: it is well and waits for the next question."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Child:
    """The one child of this process, started when first asked and again when it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the child; 0 while there is none."""
        return self._process.pid if self._process else 0

    @contextlib.contextmanager
    def asked(self, folder: Path, *, voxels: bool) -> Generator[tuple[dict[str, Any], Iterator[bytes]]]:
        """The head of a series and, if asked for, the bytes of its slices (rows, columns) float32.

        Raises:
            MedsegError: as the child raised it; `InputRefused` where it crashed or took too long.
        """
        sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
        request = {
            "folder": str(folder),
            "voxels": voxels,
            "memory": MEMORY + PER_FILE_BYTE * max(sizes, default=0),
        }
        with self._lock:
            process = self._running()
            timer = threading.Timer(SECONDS + SECONDS_PER_FILE * len(sizes), process.kill)
            timer.start()
            try:
                yield _asked(process, request, timer)
            except _Told as told:
                raise told.error from None
            except BaseException:  # answers may be on their way that the next one who asks must not get
                self.end()
                raise
            finally:
                timer.cancel()

    def end(self) -> None:
        """Let the child end; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def forget(self) -> None:
        """Leave the child to the process that this one was forked from."""
        self.__init__()  # type: ignore[misc]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": paths},
            )
        return self._process


CHILD = Child()
atexit.register(CHILD.end)
os.register_at_fork(after_in_child=CHILD.forget)


def _asked(
    process: subprocess.Popen[bytes], request: Mapping[str, Any], timer: threading.Timer
) -> tuple[dict[str, Any], Iterator[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    output, folder = process.stdout, Path(request["folder"])
    with contextlib.suppress(BrokenPipeError):  # then no answer comes
        _send(process.stdin, request)
    head = _line(output)
    if head is None:
        raise _ended(process, timer, folder)
    count = 4 * head["shape"][0] * head["shape"][1]

    def slices() -> Iterator[bytes]:
        for file in head["files"]:
            if _line(output) is None or len(content := output.read(count)) < count:
                raise _ended(process, timer, Path(file))
            yield content

    return head, slices()


def _line(output: IO[bytes]) -> dict[str, Any] | None:
    """The next line of an answer; None where the child has ended."""
    line = output.readline()
    if not line.endswith(b"\n"):
        return None
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        kind, fields = answer["error"]
        raise _Told(getattr(errors, kind)(**fields))
    if "fault" in answer:
        raise _Told(RuntimeError(answer["fault"]))
    return answer


def _ended(process: subprocess.Popen[bytes], timer: threading.Timer, path: Path) -> InputRefused:
    if timer.finished.is_set():
        problem = f"could not be read within {timer.interval:.0f} s"
    else:
        problem = f"broke the decoder (exit code {process.wait()})"
    return InputRefused(problem, path=path, fix="export the slices again, or convert them to NIfTI")


def _send(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def serve() -> None:
    """The child: answer questions until there are none."""
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            _limit(request["memory"])
            _answer(Path(request["folder"]), request["voxels"], output)
        except MedsegError as error:
            _send_error(output, type(error).__name__, error.problem, error.path, error.fix)
        except MemoryError:
            problem = f"needs more than the {request['memory'] / 2**30:.1f} GiB of memory that are allowed"
            _send_error(output, "InputRefused", problem, request["folder"], "export the slices again")
        except BrokenPipeError:
            return
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            _send_error(output, "UnreadableFile", problem, error.filename, "check its permissions")
        except Exception:
            _send(output, {"fault": traceback.format_exc()})


def _answer(folder: Path, voxels: bool, output: IO[bytes]) -> None:
    from medseg.io.dicom_series import read_series

    series = read_series(folder)
    files = [str(one.path) for one in series.slices]
    head = {"shape": series.shape, "affine": series.affine.tolist(), "files": files, "left_out": series.left_out}
    _send(output, head)
    for values in series.values() if voxels else ():
        _send(output, {})
        output.write(values.tobytes())
    output.flush()


def _send_error(output: IO[bytes], kind: str, problem: str, path: Any, fix: str | None) -> None:
    fields = {"problem": problem, "path": None if path is None else str(path), "fix": fix}
    _send(output, {"error": [kind, fields]})


def _limit(memory: int) -> None:
    """Limit the address space, where the system has such a limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
