"""Output on any terminal and in any encoding, and errors as one line each."""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

DEBUG = "LANDPRIOR_DEBUG"
"""If this variable is set, an unexpected error is raised with its traceback instead of shown as one line."""

_ENCODE = "landprior.terminal"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def prepare_streams() -> None:
    """Make stdout and stderr safe to write to: open, and without errors for characters they cannot show."""
    for number in (0, 1, 2):  # a closed descriptor would be reused for the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_ENCODE, _replace_unencodable)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # missing, replaced by a test, or closed
            stream.reconfigure(errors=_ENCODE)  # type: ignore[union-attr]


def _replace_unencodable(error: UnicodeError) -> tuple[bytes, int]:
    """Encode characters missing in an encoding: bytes of a file name unchanged, others as a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return b"".join(bytes([ord(one) - 0xDC00]) if "\udc80" <= one <= "\udcff" else b"?" for one in letters), error.end


def quiet_warnings() -> None:
    """Keep ``PYTHONWARNINGS=error`` from turning warnings of other libraries into failures, here and in workers."""
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")
        os.environ.pop("PYTHONWARNINGS", None)


def quiet_libraries() -> None:
    """Keep GDAL's own messages, and rasterio's about text that is not UTF-8, off the terminal.

    Our own errors explain them. Call this before GDAL is imported.
    """
    os.environ.setdefault("CPL_LOG", os.devnull)
    if getattr(sys.unraisablehook, "__name__", "") == _drop_notes.__name__:
        return
    before = sys.unraisablehook

    def _drop(note: sys.UnraisableHookArgs) -> None:
        _drop_notes(note, before)

    _drop.__name__ = _drop_notes.__name__
    sys.unraisablehook = _drop


def _drop_notes(note: sys.UnraisableHookArgs, otherwise: Callable[[sys.UnraisableHookArgs], object]) -> None:
    """Log messages of GDAL that rasterio could not decode; pass other errors on."""
    if issubclass(note.exc_type, UnicodeDecodeError):
        logging.getLogger("landprior").debug("a library could not decode: %s", note.exc_value)
    else:
        otherwise(note)


def one_line(text: str) -> str:
    """Write line ends and other control characters (as in a file name) as escapes, so that a message is one line."""
    return "".join(one if one.isprintable() or "\udc80" <= one <= "\udcff" else _escape(one) for one in text)


def _escape(letter: str) -> str:
    return letter if ord(letter) > 0xFF else letter.encode("unicode_escape").decode("ascii")


class LineFormatter(logging.Formatter):
    """Format a record as one line, followed by any traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format the message, without control characters."""
        return one_line(super().formatMessage(record))


class StderrHandler(logging.StreamHandler[TextIO]):
    """Write log lines to stderr, above a progress bar rather than into it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if "tqdm" not in sys.modules:
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def explain_failure(error: BaseException) -> str | None:
    """Return a sentence that explains a failure outside landprior; None if it was unexpected."""
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"out of memory{detail}; close other programs, or use smaller tiles, --filters 16 or --memory"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read"
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return "out of memory on the GPU; use smaller tiles, --filters 16 or --device cpu"
    if _is_crs_error(error):
        return f"a coordinate reference system cannot be used ({first_line(error)}); landprior doctor may explain why"
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os(error)
    return None


def _is_crs_error(error: BaseException) -> bool:
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(names & {"rasterio.errors.CRSError", "pyproj.exceptions.ProjError"})


def _explain_os(error: OSError) -> str:
    why = error.strerror or os.strerror(error.errno or 0)
    if is_stdout_failure(error):
        return f"cannot write to standard output ({why})"
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    if error.errno in _FULL:
        return f"{where}no space left to write a file ({why}); free some, or choose another place"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}too many open files; raise the limit (ulimit -n 4096) or give fewer files"
    return f"{where}{why}" if where else f"the operating system reported an error ({why})"


def is_stdout_failure(error: BaseException) -> bool:
    """Return whether a system error occurred while click was printing to standard output."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name, trace = str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_next
    return isinstance(error, OSError) and error.errno is not None and name == "click.utils"


def first_line(error: BaseException) -> str:
    """Return the message of an error as one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def give_up_stdout() -> None:
    """Discard the rest of stdout's buffer, so that Python does not fail on it again at exit."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
