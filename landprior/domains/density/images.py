"""The images of a project: finding them in folders, and holding some out by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.errors import InputError, MissingInputError
from landprior.raster.grid import Grid
from landprior.raster.reading import open_raster

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi", ".bmp", ".jp2"})
"""Extensions of files in a folder that are used as images."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a run, by file name, and their grids."""

    paths: Mapping[str, Path]
    grids: Mapping[str, Grid]

    @property
    def names(self) -> list[str]:
        """File names, sorted."""
        return sorted(self.paths)


def find_images(given: Iterable[str | Path]) -> Images:
    """Find images, including those in folders.

    Raises
    ------
    MissingInputError
        If a file or folder does not exist, or a folder has no images.
    InputError
        If two have the same name except for the extension.
    RasterReadError
        If one cannot be read.
    """
    paths: dict[str, Path] = {}
    for item in map(Path, given):
        found = sorted(p for p in item.iterdir() if p.suffix.lower() in SUFFIXES) if item.is_dir() else [item]
        if not found:
            msg = f"{item} has no image ({', '.join(sorted(SUFFIXES))})"
            raise MissingInputError(msg)
        for path in found:
            twin = next((other for other in paths.values() if other.stem == path.stem and other != path), None)
            if twin is not None:
                msg = f"{twin} and {path} have the same name, so tables and maps cannot tell them apart; rename one"
                raise InputError(msg)
            paths[path.name] = path
    if not paths:
        msg = "no images were given"
        raise InputError(msg)
    grids = {}
    for name, path in paths.items():
        with open_raster(path) as src:
            grids[name] = Grid.of(src)
    return Images(paths=paths, grids=grids)


def draw_held_out(names: Iterable[str], share: float) -> set[str]:
    """Choose a share of images by a hash of their names: the choice does not depend on the other images."""
    limit = share * 2**32
    return {name for name in names if int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < limit}
