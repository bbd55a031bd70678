"""Where results go: never over an input, whole or not at all, and without the files that described an older result."""

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
"""What a result is, which says what may lie beside it."""

_LONGEST = 200
"""Bytes of a name up to which a checkpoint has the whole of it in its own: file systems take 255."""


_OTHER_FORMATS = {
    ".bil", ".bmp", ".csv", ".dbf", ".fgb", ".geojson", ".gif", ".gml", ".gpkg", ".grib", ".h5", ".hdf", ".hdr", ".img",
    ".jp2", ".jpeg", ".jpg", ".json", ".kml", ".mbtiles", ".nc", ".parquet", ".pdf", ".png", ".qml", ".safetensors",
    ".shp", ".tsv", ".txt", ".vrt", ".webp", ".xlsx", ".xml", ".yaml", ".yml", ".zarr", ".zip",
}  # fmt: skip
"""Endings that promise another format than the GeoTIFF that is written."""


def check_output(path: str | Path, *, overwrite: bool, inputs: Iterable[object] = (), kind: Kind = "file") -> Path:
    """Check, before any work, that a result can be put at ``path``.

    Parameters
    ----------
    path
        The file to write. Its folder must be there.
    overwrite
        Replace what is there.
    inputs
        What the result is made from: paths of files or folders; None and anything else is skipped. No part of them
        (the sources of a VRT, masks, the files of a shapefile) is ever replaced or removed.
    kind
        A raster or vector is replaced with what lies beside it (:func:`landprior.raster.sidecars.sidecars_of`).

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    OutputExistsError
        If something is there, or something that would be read as a part of the result, and ``overwrite`` is False;
        if a file beside it was not made by landprior and would describe the new result.
    InputError
        If the path is an input, a folder, a link, no local path, or promises another format.
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
    """Check several results of one call, as :func:`check_output`; two may not be one file.

    Parameters
    ----------
    paths
        Files to write, of one kind.
    overwrite, inputs
        See :func:`check_output`.
    kind
        Of ``paths``.
    files
        Plain files that are written besides, such as a style or a picture.

    Returns
    -------
    list of Path
        ``paths``.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        As :func:`check_output`; also if two are one file.
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
    """Refuse an output that is an input, a part of one, or another output, by whatever name.

    Raises
    ------
    InputError
        Names both.
    """
    outputs, sources = list(outputs), [path for path in inputs if isinstance(path, (str, Path))]
    for number, path in enumerate(outputs):
        twin = next((other for other in outputs[:number] if same_file(path, other)), None)
        if twin is not None:
            msg = f"two results would be one file: {twin} and {path}; give each a name of its own"
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
                msg = f"the output {taken} is a part of the input {source}, {part}; give another output path"
                raise InputError(msg)


def check_folder(folder: str | Path, inputs: Iterable[object]) -> None:
    """Refuse a folder of results that is a folder of inputs: the next call would read the results too.

    Raises
    ------
    InputError
        Names it.
    """
    for source in inputs:
        if isinstance(source, (str, Path)) and Path(source).is_dir() and same_file(folder, source):
            own = Path(folder) / "out"
            msg = f"{folder} is a folder of inputs; give the results a folder of their own, such as {own}"
            raise InputError(msg)


def make_folder(path: str | Path) -> Path:
    """Make a folder for results, with those above it.

    Raises
    ------
    InputError
        If it is no local path.
    RasterWriteError
        If it cannot be made.
    """
    refuse_remote(path)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        msg = f"{path} is a file, and a folder is needed there; give another path"
        raise RasterWriteError(msg) from error
    except OSError as error:
        msg = f"cannot make the folder {path} ({error.strerror})"
        raise RasterWriteError(msg) from error
    return path


def check_place(path: Path, *, overwrite: bool, kind: Kind = "file") -> None:
    """Check the path itself, not what lies beside it.

    Parameters
    ----------
    path, overwrite, kind
        See :func:`check_output`.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        As :func:`check_output`.
    """
    refuse_remote(path)
    check_target(path)
    try:
        if path.is_dir():
            msg = f"{path} is a folder; give the path of a file to write"
            raise InputError(msg)
        if path.is_symlink():
            msg = f"{path} is a link to {os.readlink(path)}; give that path itself, or remove the link"  # noqa: PTH115 - as it is written
            raise InputError(msg)
        path.exists()
        path.with_name(f"{path.name}.aux.xml" if kind == "raster" else path.name).exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        msg = f"the name {path.name[:20]}... of {len(path.name)} letters is too long for this file system; shorten it"
        raise RasterWriteError(msg) from error
    if kind == "raster" and path.suffix.lower() in _OTHER_FORMATS:
        msg = f"{path} would be a GeoTIFF, whatever its name says; give a path that ends in .tif"
        raise InputError(msg)
    if path.exists() and not overwrite:
        msg = f"{path} exists; give --overwrite to replace it, or another path"
        raise OutputExistsError(msg)
    if not path.parent.is_dir():
        in_the_way = next((one for one in path.parents if one.is_file()), None)
        msg = (
            f"the folder {path.parent} of {path.name} does not exist; make it, or give another path"
            if in_the_way is None
            else f"cannot make the folder {path.parent}: {in_the_way} is a file; give another path"
        )
        raise RasterWriteError(msg)
    if not os.access(path.parent, os.W_OK):
        msg = f"the folder {path.parent} cannot be written to; choose another output path"
        raise RasterWriteError(msg)


def prepare_place(path: str | Path, *, overwrite: bool, kind: Kind = "file") -> Path:
    """Check a path as :func:`check_place` and make its folder: for files of a folder that landprior itself fills.

    Parameters
    ----------
    path, overwrite, kind
        See :func:`check_output`.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        As :func:`check_output`; also if the folder cannot be made.
    """
    refuse_remote(path)
    path = Path(path)
    if not path.parent.is_dir():
        make_folder(path.parent)
    check_place(path, overwrite=overwrite, kind=kind)
    return path


def _check_beside(path: Path, outputs: list[Path], inputs: list[object], *, overwrite: bool, kind: Kind) -> None:
    """Refuse what lies beside an output and would be read with it, unless it may go with the older result."""
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
                    f"{other.path} lies beside {path} and would seem to describe the new result, but landprior did not "
                    "write it; move it away, or give another output path"
                )
                raise OutputExistsError(msg)
            continue
        if not overwrite and not is_names(other.path):
            msg = (
                f"{other.path} is left over from an older {path.name} and would be read as a part of the new one; "
                "give --overwrite to remove it, or another output path"
            )
            raise OutputExistsError(msg)
        check_apart([other.path], inputs)


_PROTECTED: list[Path] = []


@contextmanager
def protecting(inputs: Iterable[str | Path]) -> Iterator[None]:
    """Let :func:`replacing` refuse to write over these files while the block runs.

    It is for names that are not known beforehand, such as those of the many files in a folder of results.
    """
    before = list(_PROTECTED)
    for path in map(Path, inputs):
        with contextlib.suppress(OSError):  # a name that cannot be
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
    """Give a temporary path; move what is written there to ``path`` when the block ends well.

    If the block fails or is interrupted, the temporary file goes and what was at ``path`` stays. The file is on the
    disk, not only in memory, before it takes the name. A raster or vector that is replaced takes along what lay
    beside it. A missing folder is made here; a command whose user names the file calls :func:`check_output` first,
    which refuses.

    Parameters
    ----------
    path, overwrite, kind
        See :func:`check_output`.
    companions
        Endings of further files that the block writes, such as ``".aux.xml"`` for ``<temporary>.aux.xml``.
    keep
        Files beside ``path`` that are not to go with the older result, since they are new.

    Yields
    ------
    Path
        A temporary file beside ``path``, yet to be written.

    Raises
    ------
    OutputExistsError, InputError, RasterWriteError
        As :func:`check_output`; also if the disk is full.
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
    """List what goes with the older result at a path."""
    kept = (*keep, *_PROTECTED)
    return [
        other.path
        for other in (() if kind == "file" else sidecars_of(path, kind))
        if not any(same_file(other.path, one) for one in kept) and (not other.product or is_ours(other.path))
    ]


def checkpoint_of(path: str | Path) -> Path:
    """Return where the state of unfinished work on a result is kept: hidden, beside it, by its name.

    A long name is cut and told apart by a digest, so that there is room for what is added to it.
    """
    path = Path(path)
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = f"{name[: _LONGEST // 8]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return path.with_name(f".{name}.checkpoint")


def _clear_old(path: Path) -> None:
    """Remove the temporary files of one result that earlier versions, which had no locks, have left."""
    ours = re.compile(rf"\.{re.escape(path.stem)}-[a-z0-9_]{{8}}{re.escape(path.suffix)}(\..*)?")
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}-*"):
        if ours.fullmatch(leftover.name):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFT_BEHIND:
                    leftover.unlink()


def reason_of(error: BaseException) -> str:
    """Return on one line what GDAL or the system says."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__
