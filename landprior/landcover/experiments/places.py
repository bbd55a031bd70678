"""The tiles of an experiment: directories laid out as by torchgeo, or files named by a pattern."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.landcover.prior.coarse import LAYERS
from landprior.landcover.workspace.provenance import make_key
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.pixels import read_window
from landprior.raster.reading import open_raster
from landprior.raster.windows import iter_blocks
from landprior.sources.vectors import read_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.experiments.config import Data, Experiment, Region

ENVIROATLAS_FOLDER = "enviroatlas_lotp"
"""Folder below the root into which torchgeo unpacks EnviroAtlas."""

INDEX = "spatial_index.geojson"
"""torchgeo's list of tiles and files."""

_INDICES = {"enviroatlas": f"{ENVIROATLAS_FOLDER}/{INDEX}", "chesapeake": INDEX}

_ENVIROATLAS = {
    "image": "naip",
    "nlcd": "nlcd",
    "roads": "roads",
    "buildings": "buildings",
    "waterways": "waterways",
    "waterbodies": "waterbodies",
    "labels": "lc",
}
"""Layers and the columns of torchgeo's index that name their files."""

_CHESAPEAKE = {"image": "naip-new", "nlcd": "nlcd", "buildings": "buildings", "labels": "lc"}
_CHESAPEAKE_PRIOR = "prior_from_cooccurrences_101_31_no_osm_no_buildings"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A tile and its files.

    Parameters
    ----------
    name
        Unique within its split.
    region
        The region whose matrix and label map apply.
    split
        The data set's own split.
    image, labels
        Rasters.
    nlcd, prior
        Rasters; None if the data has none.
    layers
        Roads, buildings, waterways and waterbodies, as far as they exist.
    """

    name: str
    region: str
    split: str
    image: Path
    labels: Path
    nlcd: Path | None = None
    prior: Path | None = None
    layers: Mapping[str, Path] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Unique in the experiment; seeds derive from it."""
        return f"{self.split}/{self.name}"


class Places:
    """Finds the tiles of an experiment's regions.

    Parameters
    ----------
    experiment
        See :class:`Experiment`.
    root
        Folder of the data: torchgeo's root of the data set, or the folder that patterns are relative to.
    work
        Folder for halves of files.
    """

    def __init__(self, experiment: Experiment, root: Path, work: Path) -> None:
        self._experiment, self._regions = experiment, experiment.regions
        self._data, self._root, self._work = experiment.data, root, work
        self._known: dict[str, list[Place]] = {}
        if not root.is_dir():
            msg = f"no data at {root}; fetch torchgeo's data sets with: landprior fetch --dataset NAME --root {root}"
            raise MissingInputError(msg)

    def files(self) -> dict[str, Path]:
        """Return the files that show whether the data has changed: torchgeo's index, or every file.

        Raises
        ------
        MissingInputError
            If a file is missing.
        """
        if self._data.kind != "files":
            index = self._root / _INDICES[self._data.kind]
            return {"index": _require_file(index, "is --root the root of torchgeo's data set?")}
        splits = {own for region in self._regions.values() for some in region.splits.values() for own in some}
        return {
            f"{layer} of {split}": _require_file(self._root / pattern.format(split=split), f"{layer} of {split}")
            for split in splits
            for layer, pattern in self._data.layers.items()
        }

    def checksum(self) -> str:
        """Return a checksum of :meth:`files`."""
        return make_key({}, self.files())

    def region(self, name: str) -> Region:
        """Return a region by name."""
        return self._regions[name]

    def find(self, region: str, split: str = "test") -> list[Place]:
        """List the tiles of a split of a region, except those excluded by the region's rules.

        Raises
        ------
        ConfigError
            If the region has no such split.
        InputError
            If no tile is left.
        """
        found: list[Place] = []
        for member in self._experiment.members(region):
            key = f"{member}/{split}"
            if key not in self._known:
                self._known[key] = self._find(member, split)
            found += self._known[key]
        return found

    def _find(self, region: str, split: str) -> list[Place]:
        rules = self._regions[region]
        if split not in rules.splits:
            msg = f"region {region!r} has no split {split!r} (it has {', '.join(rules.splits) or 'none'})"
            raise ConfigError(msg)
        readers = {"enviroatlas": _read_enviroatlas, "chesapeake": _read_chesapeake}
        found: list[Place] = []
        for own in rules.splits[split]:
            if self._data.kind == "files":
                found += _read_files(self._root, region, own, self._data, self._work)
            else:
                found += readers[self._data.kind](self._root, region, own)
        kept = [place for place in found if not (rules.leave_out and _has_code(place.labels, rules.leave_out))]
        kept = kept[: rules.first]
        if not kept:
            msg = f"{self._root} has no tile of {region} in {', '.join(rules.splits[split])} to use"
            raise InputError(msg)
        return kept


def _read_enviroatlas(root: Path, region: str, split: str) -> list[Place]:
    """Read torchgeo's EnviroAtlas directory."""
    folder = root / ENVIROATLAS_FOLDER
    places = []
    for row in _index(folder, split):
        image = folder / row["naip"]
        stem = image.name.removesuffix("_a_naip.tif")
        places.append(
            Place(
                name=stem,
                region=region,
                split=split,
                image=image,
                labels=folder / row[_ENVIROATLAS["labels"]],
                nlcd=folder / row["nlcd"],
                prior=image.with_name(f"{stem}_prior_from_cooccurrences_101_31.tif"),
                layers={name: folder / row[_ENVIROATLAS[name]] for name in LAYERS},
            )
        )
    return places


def _read_chesapeake(root: Path, region: str, split: str) -> list[Place]:
    """Read torchgeo's ChesapeakeCVPR directory, with the prior extension if it exists."""
    places = []
    for row in _index(root, split):
        labels = root / row[_CHESAPEAKE["labels"]]
        stem = labels.name.removesuffix("_lc.tif")
        prior = labels.with_name(f"{stem}_{_CHESAPEAKE_PRIOR}.tif")
        places.append(
            Place(
                name=stem,
                region=region,
                split=split,
                image=root / row[_CHESAPEAKE["image"]],
                labels=labels,
                nlcd=root / row[_CHESAPEAKE["nlcd"]],
                prior=prior if prior.is_file() else None,
                layers={"buildings": root / row[_CHESAPEAKE["buildings"]]},
            )
        )
    return places


def _index(folder: Path, split: str) -> list[dict[str, str]]:
    """Return the rows of a split in torchgeo's index, sorted by path."""
    path = _require_file(folder / INDEX, "is --root the root of torchgeo's data set?")
    frame = read_vectors(path)
    if "split" not in frame.columns:
        msg = f"{path} has no column 'split'; it is not torchgeo's index"
        raise InputError(msg)
    rows = frame[frame["split"] == split].drop(columns="geometry").to_dict("records")
    return sorted(rows, key=lambda row: str(row.get("naip", row.get("lc"))))


def _read_files(root: Path, region: str, split: str, data: Data, work: Path) -> list[Place]:
    """Read files named by a pattern; as one tile or as its two halves."""
    files: dict[str, Path] = {}
    for layer, pattern in data.layers.items():
        files[layer] = _require_file(root / pattern.format(split=split), f"{layer} of {region}")
    parts = {"": files}
    if data.halves:
        parts = {
            side: {
                layer: _write_half(path, work / "halves" / f"{split}-{side}-{layer}.tif", side)
                for layer, path in files.items()
            }
            for side in ("left", "right")
        }
    return [
        Place(
            name=side or split,
            region=region,
            split=split,
            image=some["image"],
            labels=some["labels"],
            nlcd=some.get("nlcd"),
            prior=some.get("prior"),
            layers={name: some[name] for name in LAYERS if name in some},
        )
        for side, some in parts.items()
    ]


def _require_file(path: Path, why: str) -> Path:
    if not path.is_file():
        msg = f"{path} is missing ({why})"
        raise MissingInputError(msg)
    return path


def _write_half(source: Path, target: Path, side: str) -> Path:
    """Write the left or the right half of a raster."""
    if target.is_file():
        return target
    with open_raster(source) as src:
        middle = src.width // 2
        window = (
            Window(0, 0, middle, src.height) if side == "left" else Window(middle, 0, src.width - middle, src.height)
        )
        grid = Grid.of(src).window(window)
        values = read_window(src, window)
        # write no alpha or mask: keep the source's bands as they are
        write_raster(target, values, grid, nodata=src.nodata, overviews="nearest", overwrite=True)
    return target


def _has_code(labels: Path, codes: Sequence[int]) -> bool:
    """Return whether labels contain any of some codes."""
    with open_raster(labels) as src:
        return any(
            bool(np.isin(read_window(src, block.core, 1), codes).any())
            for block in iter_blocks(Grid.of(src), size=2048)
        )
