"""Paths that GDAL reads from elsewhere: other machines and archives."""

from __future__ import annotations

import os
import re
from pathlib import Path

from landprior.addresses import redact
from landprior.errors import (
    InputError,
)

_REMOTE = re.compile(
    r"(?:[a-z][a-z0-9+.-]+://|(?:s3|gs|gcs|az|abfss?|adl|oss|swift|https?|ftps?|hdfs|webhdfs|file|zip|tar|gzip):/)",
    re.IGNORECASE,
)


_READ_ONLY = re.compile(r"/vsi(?:zip|gzip|tar|7z|rar)/", re.IGNORECASE)


def is_remote(path: str | Path) -> bool:
    """Return whether a path is not a local file: a URL, a bucket, one of GDAL's virtual systems."""
    text = os.fspath(path)
    return bool(_REMOTE.match(text)) or text.startswith("/vsi")


def explain_remote_input(path: str | Path) -> str | None:
    """Return why a remote input cannot be read, with a remedy and without secrets; None if it may be readable."""
    text = os.fspath(path)
    if _READ_ONLY.match(text) or not is_remote(text):
        return None
    shown = redact(text)
    if text.lower().startswith(("zip:", "tar:", "gzip:", "file:")):
        return f"{shown} is a URL; give a plain path, or /vsizip/ARCHIVE.zip/FILE for a raster in an archive"
    return f"{shown} is not a local file; download it first and give the path of the copy"


def archive_path(text: str | Path) -> str:
    """Return the path of a file in an archive in a form that survives conversion to Path, which collapses //."""
    text = os.fspath(text)
    head, system, rest = text[:1], *text[1:].partition("/")[::2]
    if not _READ_ONLY.match(text) or not rest.startswith("/"):
        return text
    archive = next((one for one in Path(rest).parents if one.is_file()), Path(rest))
    inside = Path(rest).relative_to(archive).as_posix()
    return f"{head}{system}/{{{archive}}}" + ("" if inside == "." else f"/{inside}")


def refuse_remote(path: str | Path) -> None:
    """Raise an error for an output path that is not local.

    Raises
    ------
    InputError
        If it is not.
    """
    if is_remote(path):
        msg = (
            f"{redact(os.fspath(path))} is not a local path, and results are written to local files only; "
            "write a local file and copy it there"
        )
        raise InputError(msg)
