"""Labelled pixels of a place: the tiles under the points, and what maps of each pixel need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from landprior.errors import InputError
from landprior.landcover.mapping.class_sums import ClassSums
from landprior.landcover.mapping.mapper import Mapper
from landprior.landcover.mapping.memory import choose_window
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import check_image, make_finish, open_extra_input
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.landcover.training.head import Head
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.progress import track
from landprior.raster.grid import require_same_grid
from landprior.raster.windows import Block, grow_window, stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.mapping.mapper import Surroundings
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.windows import Sink
    from landprior.run import Run


@dataclass(frozen=True, kw_only=True)
class PlaceTile:
    """A tile of the place: image, prior and the model that maps it."""

    image: Path
    prior: Path
    model: LandcoverModel


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledPixel:
    """A labelled pixel and what is needed to map it with any head.

    Parameters
    ----------
    features
        What a head sees of the pixel's window and its margin, (F, h, w).
    surroundings, mapper
        What smoothing the window needs.
    at
        Row and column of the pixel in the core of its window.
    position, share
        Class of the label, and the area that it represents.
    file
        Number of its file.
    proposed
        Whether it was proposed for an adaptation.
    prior, plain
        The class by the prior alone, and on the map without points.
    x, y
        Its place, in the CRS of the tile.
    """

    features: Tensor
    surroundings: Surroundings
    mapper: Mapper
    at: tuple[int, int]
    position: int
    file: int
    share: float
    proposed: bool
    prior: int
    plain: int
    x: float
    y: float

    def middle(self) -> NDArray[np.float64]:
        """Return the features of the pixel itself, (F,)."""
        rows, columns = self.surroundings.core
        pixel = self.features[:, rows.start + self.at[0], columns.start + self.at[1]]
        return pixel.double().cpu().numpy()

    def map(self, head: Head) -> int:
        """Return the class that a finished map by a head has here."""
        log_p = head.apply(self.features)
        shares = self.mapper.smooth(log_p, self.surroundings)
        found = log_p[:, *self.surroundings.core] if shares is None else shares
        return int(found[:, self.at[0], self.at[1]].argmax())


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenTile:
    """A tile that is open, with its points."""

    tile: PlaceTile
    pixels: ImageLayer
    mapper: Mapper
    labels: list[geopandas.GeoDataFrame]
    designed: bool


def open_tile(
    stack: ExitStack,
    tile: PlaceTile,
    points: Sequence[str | Path],
    *,
    column: str | None,
    layer: str | None,
    needed: bool,
    run: Run,
) -> OpenTile:
    """Open a tile and read its points; an adapted model begins anew, without its head.

    Parameters
    ----------
    stack
        Closes the files.
    tile
        The tile.
    points, column, layer
        Files of points; see :func:`landprior.landcover.adaptation.adapt.adapt`.
    needed
        Whether it is an error if a file has no point on the tile.
    run
        Device, and nodata value of the image.

    Returns
    -------
    OpenTile
        The tile.

    Raises
    ------
    LandpriorError
        If model, image, prior and points do not fit each other.
    """
    model = replace(tile.model, head=None)
    pixels = stack.enter_context(ImageLayer(tile.image, nodata=run.nodata))
    check_image(model, pixels, force=False)
    belief = stack.enter_context(PriorLayer(tile.prior, scheme=model.scheme))
    require_same_grid(pixels.grid, belief.grid, names=(str(tile.image), str(tile.prior)))
    extra = open_extra_input(stack, model, pixels, tile.prior if "prior" in model.extras else None)
    read = [
        read_sparse_labels(file, model.scheme, pixels.grid, column=column, layer=layer, needed=needed)
        for file in points
    ]
    finish = make_finish(model, pixels, MapOptions())
    mapper = Mapper(model, pixels, belief, extra, finish=finish, device=run.device)
    return OpenTile(
        tile=tile,
        pixels=pixels,
        mapper=mapper,
        labels=[labels.locate_points(pixels.grid) for labels in read],
        designed=all(labels.designed for labels in read),
    )


def begin_head(tiles: Sequence[OpenTile], *, run: Run) -> Head:
    """Sum q and the prior over the tiles of a model, and return the head that gives r.

    Parameters
    ----------
    tiles
        Tiles of one model.
    run
        Device and progress.

    Returns
    -------
    Head
        The head that a fit begins with; it leaves out the classes that the training gave up.

    Raises
    ------
    InputError
        If a tile has no pixel with image and prior.
    """
    model = tiles[0].tile.model
    stride = model.network.stride
    window = -(-choose_window(run.device) // stride) * stride
    for one in tiles:
        sums: dict[str, Sink] = {"sums": one.mapper.sums}
        stream(
            one.mapper.gather,
            read=one.mapper.read_for_sums,
            grid=one.pixels.grid,
            sinks=sums,
            label="class sums",
            halo=one.mapper.halo,
            size=window,
            progress=run.progress,
        )
        if not one.mapper.sums.seen:
            msg = f"{one.tile.image} has no valid pixel with a prior; is its nodata value correct?"
            raise InputError(msg)
    total = ClassSums.of([one.mapper.sums for one in tiles])
    head = Head.of_posterior(total.log_shares().numpy(), total.log_prior().numpy(), model.bands)
    return replace(head, left_out=np.array(total.given_up(), dtype=np.intp))


def visit_points(
    tile: OpenTile, start: Head, seen: set[Any], *, progress: bool
) -> tuple[list[LabelledPixel], set[tuple[int, Any]]]:
    """Return the points of a tile that no other had, and those that lie on pixels without data.

    Points of one class in one pixel count once, so that a file that is given twice changes nothing.

    Parameters
    ----------
    tile
        The tile.
    start
        The head that the fit begins with.
    seen
        Points of the tiles before; those of this one are added.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    found : list of LabelledPixel
    empty : set
        File and feature of each.
    """
    mapper, grid, stride = tile.mapper, tile.pixels.grid, tile.tile.model.network.stride
    found: list[LabelledPixel] = []
    empty: set[tuple[int, Any]] = set()
    pixels: set[tuple[int, int, int]] = set()
    labels = [
        ((number, index), label)
        for number, frame in enumerate(tile.labels)
        for index, label in frame.iterrows()
        if (number, index) not in seen
    ]
    # one window per pixel: points are few and lie far apart
    for key, label in track(labels, label="points", unit="point", show=progress):
        row, column = int(label["row"]), int(label["column"])
        top, left = row // stride * stride, column // stride * stride
        core = Window(left, top, min(stride, grid.width - left), min(stride, grid.height - top))
        block = Block(core=core, outer=grow_window(core, mapper.halo, grid))
        data = mapper.read(block)
        visible = mapper.see(start, block, data)
        at = (row - top, column - left)
        if visible is None or not visible[1].valid[visible[1].core][at]:
            empty.add(key)
            continue
        seen.add(key)
        if (row, column, int(label["position"])) in pixels:
            continue
        pixels.add((row, column, int(label["position"])))
        mapped = mapper.compute(block, data, ("probabilities",))["probabilities"]
        shares = mapped() if callable(mapped) else mapped
        found.append(
            LabelledPixel(
                features=visible[0],
                surroundings=visible[1],
                mapper=mapper,
                at=at,
                position=int(label["position"]),
                file=key[0],
                share=float(label["share"]),
                proposed=bool(label["proposed"]),
                prior=int(visible[0][len(start.bias) : 2 * len(start.bias)][:, *visible[1].core][:, *at].argmax()),
                plain=int(shares[:, *at].argmax()),
                x=float(label.geometry.x),
                y=float(label.geometry.y),
            )
        )
    return found, empty
