"""Writing results safely: never over an input, atomically, and without files that described an older result."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rasterio.errors import RasterioIOError

from landprior.errors import (
    InputError,
    MissingInputError,
    OutputExistsError,
    RasterReadError,
    RasterWriteError,
)
from landprior.inputs import check_target
from landprior.raster.locks import LEFT_BEHIND, clear_leftovers, make_temporary, sync_to_disk
from landprior.raster.remote import refuse_remote
from landprior.raster.sidecars import files_of, is_inside, is_names, is_ours, same_file, sidecars_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

Kind = Literal["file", "raster", "vector"]
"""Kind of a result, which determines the files that may lie beside it."""

_LONGEST = 200
"""Length in bytes up to which a checkpoint's name includes the result's whole name: file systems allow 255."""


_OTHER_FORMATS = {
    ".bil", ".bmp", ".csv", ".dbf", ".fgb", ".geojson", ".gif", ".gml", ".gpkg", ".grib", ".h5", ".hdf", ".hdr", ".img",
    ".jp2", ".jpeg", ".jpg", ".json", ".kml", ".mbtiles", ".nc", ".parquet", ".pdf", ".png", ".qml", ".safetensors",
    ".shp", ".tsv", ".txt", ".vrt", ".webp", ".xlsx", ".xml", ".yaml", ".yml", ".zarr", ".zip",
}  # fmt: skip
"""Extensions that suggest another format than GeoTIFF."""


def check_output(path: str | Path, *, overwrite: bool, inputs: Iterable[object] = (), kind: Kind = "file") -> Path:
    """Check, before any work, that a result can be written to ``path``.

    Parameters
    ----------
    path
        The file to write. Its folder must exist.
    overwrite
        Replace an existing file.
    inputs
        The paths of files or folders that the result is made from; None and other values are skipped. No part of them
        (the sources of a VRT, masks, the files of a shapefile) is ever replaced or removed.
    kind
        A raster or vector is replaced with the files beside it (:func:`landprior.raster.sidecars.sidecars_of`).

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    OutputExistsError
        If the file exists, or a file that would be read as part of the result, and ``overwrite`` is False; if a file
        beside it was not written by landprior and would describe the new result.
    InputError
        If the path is an input, a folder, a link, not local, or has the extension of another format.
    RasterWriteError
        If the folder is missing or cannot be written to, or the name is too long.
    """
    return check_outputs([path], overwrite=overwrite, inputs=inputs, kind=kind)[0]


def check_outputs(
    paths: Iterable[str | Path],
    *,
    overwrite: bool,
    inputs: Iterable[object] = (),
    kind: Kind = "file",
    files: Iterable[str | Path] = (),
) -> list[Path]:
    """Check several results of one call like :func:`check_output`; no two may be the same file.

    Parameters
    ----------
    paths
        Files to write, of the same kind.
    overwrite, inputs
        See :func:`check_output`.
    kind
        Kind of ``paths``.
    files
        Other files to write, such as a style or a picture.

    Returns
    -------
    list of Path
        ``paths``.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        See :func:`check_output`; also if two are the same file.
    """
    paths, files, inputs = list(paths), list(files), list(inputs)
    for path in (*paths, *files):
        refuse_remote(path)
    found, others = [Path(path) for path in paths], [Path(path) for path in files]
    check_apart([*found, *others], inputs)
    for path in (*found, *others):
        check_place(path, overwrite=overwrite, kind=kind if path in found else "file")
    for path in found:
        _check_beside(path, [*found, *others], inputs, overwrite=overwrite, kind=kind)
    return found


def check_apart(outputs: Iterable[str | Path], inputs: Iterable[object]) -> None:
    """Raise an error if an output is an input, part of one, or another output, under any name.

    Raises
    ------
    InputError
        If so; the message names both.
    """
    outputs, sources = list(outputs), [path for path in inputs if isinstance(path, (str, Path))]
    for number, path in enumerate(outputs):
        twin = next((other for other in outputs[:number] if same_file(path, other)), None)
        if twin is not None:
            msg = f"two results would be the same file: {twin} and {path}; give them different names"
            raise InputError(msg)
    there = [path for path in outputs if os.path.lexists(path)]
    for source in sources if there else ():
        for path in there:
            if same_file(path, source):
                msg = f"the output {path} is the input {source}, which it would replace; give another output path"
                raise InputError(msg)
            if is_inside(path, source):
                msg = f"the output {path} would replace a file of the input folder {source}; give another output path"
                raise InputError(msg)
        for part in files_of(source):
            taken = next((path for path in there if same_file(path, part)), None)
            if taken is not None:
                msg = f"the output {taken} is part of the input {source}, {part}; give another output path"
                raise InputError(msg)


def check_folder(folder: str | Path, inputs: Iterable[object]) -> None:
    """Raise an error if the folder of results is a folder of inputs, since the next call would read the results too.

    Raises
    ------
    InputError
        If so; the message names it.
    """
    for source in inputs:
        if isinstance(source, (str, Path)) and Path(source).is_dir() and same_file(folder, source):
            own = Path(folder) / "out"
            msg = f"{folder} is a folder of inputs; give another folder for the results, such as {own}"
            raise InputError(msg)


def make_folder(path: str | Path) -> Path:
    """Create a folder for results, with its parents.

    Raises
    ------
    InputError
        If the path is not local.
    RasterWriteError
        If it cannot be created.
    """
    refuse_remote(path)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        msg = f"{path} is a file, but a folder is needed; give another path"
        raise RasterWriteError(msg) from error
    except OSError as error:
        msg = f"cannot create the folder {path} ({error.strerror})"
        raise RasterWriteError(msg) from error
    return path


def check_place(path: Path, *, overwrite: bool, kind: Kind = "file") -> None:
    """Check the path itself, not the files beside it.

    Parameters
    ----------
    path, overwrite, kind
        See :func:`check_output`.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        See :func:`check_output`.
    """
    refuse_remote(path)
    check_target(path)
    try:
        if path.is_dir():
            msg = f"{path} is a folder; give the path of a file to write"
            raise InputError(msg)
        if path.is_symlink():
            msg = f"{path} is a link to {os.readlink(path)}; give that path, or remove the link"  # noqa: PTH115 - as it is written
            raise InputError(msg)
        path.exists()
        path.with_name(f"{path.name}.aux.xml" if kind == "raster" else path.name).exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        msg = f"the name {path.name[:20]}... of {len(path.name)} letters is too long for this file system"
        raise RasterWriteError(msg) from error
    if kind == "raster" and path.suffix.lower() in _OTHER_FORMATS:
        msg = f"{path} would be a GeoTIFF despite its name; give a path that ends in .tif"
        raise InputError(msg)
    if path.exists() and not overwrite:
        msg = f"{path} exists; give --overwrite to replace it, or another path"
        raise OutputExistsError(msg)
    if not path.parent.is_dir():
        in_the_way = next((one for one in path.parents if one.is_file()), None)
        msg = (
            f"the folder {path.parent} of {path.name} does not exist; create it, or give another path"
            if in_the_way is None
            else f"cannot create the folder {path.parent}: {in_the_way} is a file; give another path"
        )
        raise RasterWriteError(msg)
    if not os.access(path.parent, os.W_OK):
        msg = f"the folder {path.parent} is not writable; choose another output path"
        raise RasterWriteError(msg)


def prepare_place(path: str | Path, *, overwrite: bool, kind: Kind = "file") -> Path:
    """Check a path like :func:`check_place` and create its folder, for folders managed by landprior.

    Parameters
    ----------
    path
        The file; its folder need not be there.
    overwrite, kind
        See :func:`check_output`.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        See :func:`check_output`; also if the folder cannot be created.
    """
    refuse_remote(path)
    path = Path(path)
    if not path.parent.is_dir():
        make_folder(path.parent)
    check_place(path, overwrite=overwrite, kind=kind)
    return path


def _check_beside(path: Path, outputs: list[Path], inputs: list[object], *, overwrite: bool, kind: Kind) -> None:
    """Raise an error for a file that would be read with an output, unless it may be removed with the old result."""
    if kind == "file":
        return
    was_there = path.exists()
    named = [source for source in inputs if isinstance(source, (str, Path))]
    for other in sidecars_of(path, kind):
        if any(same_file(other.path, output) for output in outputs):
            continue
        if other.product and not is_ours(other.path):
            if was_there and not any(same_file(other.path, source) for source in named):
                msg = (
                    f"{other.path} beside {path} would seem to describe the new result, but landprior did not "
                    "write it; move it away, or give another output path"
                )
                raise OutputExistsError(msg)
            continue
        if not overwrite and not is_names(other.path):
            msg = (
                f"{other.path} is left over from an older {path.name} and would be read as part of the new one; "
                "give --overwrite to remove it, or another output path"
            )
            raise OutputExistsError(msg)
        check_apart([other.path], inputs)


_PROTECTED: list[Path] = []


@contextmanager
def protecting(inputs: Iterable[str | Path]) -> Iterator[None]:
    """Make :func:`replacing` protect these files within the block.

    For names that are not known in advance, such as those of many files in a folder of results.
    """
    before = list(_PROTECTED)
    for path in map(Path, inputs):
        with contextlib.suppress(OSError):  # an invalid name
            _PROTECTED.extend([path] if path.is_file() else [] if path.exists() else files_of(path))
    try:
        yield
    finally:
        _PROTECTED[:] = before


def _refuse_protected(path: Path) -> None:
    for source in _PROTECTED if path.exists() else ():
        if same_file(path, source):
            msg = f"a result would replace the input {source}; give another output path or folder"
            raise InputError(msg)


_ANNOUNCED: dict[str, Callable[[Path], None]] = {}


@contextmanager
def announcing(path: Path, tell: Callable[[Path], None]) -> Iterator[None]:
    """Call ``tell`` with the finished temporary file just before :func:`replacing` moves it to ``path``."""
    name = str(path.absolute())
    _ANNOUNCED[name] = tell
    try:
        yield
    finally:
        _ANNOUNCED.pop(name, None)


@contextmanager
def replacing(
    path: str | Path,
    *,
    overwrite: bool,
    kind: Kind = "file",
    companions: Collection[str] = (),
    keep: Collection[Path] = (),
) -> Iterator[Path]:
    """Yield a temporary path; move the file written there to ``path`` if the block succeeds.

    If the block fails or is interrupted, the temporary file is removed and ``path`` is unchanged. The file is flushed
    to disk before it gets its final name. When a raster or vector is replaced, the files beside it are removed. A
    missing folder is created; a command whose user names the file first calls :func:`check_output`, which does not
    accept that.

    Parameters
    ----------
    path, overwrite, kind
        See :func:`check_output`.
    companions
        Extensions of other files that the block writes, such as ``".aux.xml"`` for ``<temporary>.aux.xml``.
    keep
        Files beside ``path`` that must not be removed with the old result, because they are new.

    Yields
    ------
    Path
        A temporary file beside ``path``, to be written.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        See :func:`check_output`; also if the disk is full.
    """
    path = prepare_place(path, overwrite=overwrite, kind=kind)
    _refuse_protected(path)
    clear_leftovers(path.parent)
    _clear_old(path)
    folder, lock = make_temporary(path.parent)
    temporary = folder / path.name
    try:
        try:
            temporary.touch()
            yield temporary
            for suffix in ("", *companions):
                sync_to_disk(temporary.with_name(f"{path.name}{suffix}"))
        except RasterioIOError as error:
            msg = f"cannot write {path} ({reason_of(error)}); is the disk full?"
            raise RasterWriteError(msg) from error
        except OSError as error:
            if isinstance(error, (RasterReadError, MissingInputError)) or error.errno is None:
                raise
            msg = f"cannot write {path} ({error.strerror})"
            raise RasterWriteError(msg) from error
        stale = _list_stale(path, kind, keep)
        if (tell := _ANNOUNCED.get(str(path.absolute()))) is not None:
            tell(temporary)
        temporary.replace(path)
        for suffix in companions:
            temporary.with_name(f"{path.name}{suffix}").replace(f"{path}{suffix}")
        fresh = {Path(f"{path}{suffix}") for suffix in companions}
        for other in stale:
            if other not in fresh:
                other.unlink(missing_ok=True)
        sync_to_disk(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _list_stale(path: Path, kind: Kind, keep: Collection[Path]) -> list[Path]:
    """Return the files to remove with the old result at a path."""
    kept = (*keep, *_PROTECTED)
    return [
        other.path
        for other in (() if kind == "file" else sidecars_of(path, kind))
        if not any(same_file(other.path, one) for one in kept) and (not other.product or is_ours(other.path))
    ]


def checkpoint_path(path: str | Path) -> Path:
    """Return the path for the state of unfinished work on a result: a hidden file beside it, with its name.

    A long name is cut and made unique with a digest, to leave room for additions.
    """
    path = Path(path)
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = f"{name[: _LONGEST // 8]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return path.with_name(f".{name}.checkpoint")


def _clear_old(path: Path) -> None:
    """Remove the temporary files of one result left by earlier versions, which had no locks."""
    ours = re.compile(rf"\.{re.escape(path.stem)}-[a-z0-9_]{{8}}{re.escape(path.suffix)}(\..*)?")
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}-*"):
        if ours.fullmatch(leftover.name):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFT_BEHIND:
                    leftover.unlink()


def reason_of(error: BaseException) -> str:
    """Return the message of GDAL or the system on one line."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__
