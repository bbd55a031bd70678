"""Labelled pixels of a place: the tiles under the points, and what maps of each pixel need."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
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
from landprior.sources.point_marks import mark_points

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
    """A tile of the place: image, prior and the model that maps it.

    Parameters
    ----------
    image, prior
        The files.
    model
        The model.
    sums
        Sums (or shares) of q, of the classes that q names, and of the prior over all tiles of the model, (3, C), if
        they are known (:func:`measure_sums`, :func:`landprior.landcover.training.shares.find_shares`).
    """

    image: Path
    prior: Path
    model: LandcoverModel
    sums: Sequence[Sequence[float]] | None = None


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
    mark
        A hash of its place (:func:`landprior.sources.point_marks.mark_points`).
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
    mark: str

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
class TilePoints:
    """The points on a tile, one frame per file, and whether all of them carry the design of a sample."""

    labels: list[geopandas.GeoDataFrame]
    designed: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenTile:
    """A tile that is open."""

    tile: PlaceTile
    pixels: ImageLayer
    mapper: Mapper


def read_points(
    tile: PlaceTile, points: Sequence[str | Path], *, column: str | None, layer: str | None, needed: bool, run: Run
) -> TilePoints:
    """Read the points on a tile.

    Parameters
    ----------
    tile
        The tile.
    points, column, layer
        Files of points; see :func:`landprior.landcover.adaptation.adapt.adapt`.
    needed
        Whether it is an error if a file has no point on the tile.
    run
        Nodata value of the image.

    Returns
    -------
    TilePoints
        The points.

    Raises
    ------
    LandpriorError
        See :func:`landprior.landcover.prior.sparse_labels.read_sparse_labels`.
    """
    with ImageLayer(tile.image, nodata=run.nodata) as pixels:
        grid = pixels.grid
    read = [
        read_sparse_labels(file, tile.model.scheme, grid, column=column, layer=layer, needed=needed) for file in points
    ]
    located = [labels.locate_points(grid) for labels in read]
    return TilePoints(
        labels=[frame.assign(mark=mark_points(frame)) for frame in located],
        designed=all(labels.designed for labels in read),
    )


@contextmanager
def opening(tile: PlaceTile, *, run: Run) -> Iterator[OpenTile]:
    """Open a tile; an adapted model begins anew, without its head.

    Parameters
    ----------
    tile
        The tile.
    run
        Device, and nodata value of the image.

    Yields
    ------
    OpenTile
        The tile.

    Raises
    ------
    LandpriorError
        If model, image and prior do not fit each other.
    """
    model = replace(tile.model, head=None)
    with ExitStack() as stack:
        pixels = stack.enter_context(ImageLayer(tile.image, nodata=run.nodata))
        check_image(model, pixels, force=False)
        belief = stack.enter_context(PriorLayer(tile.prior, scheme=model.scheme))
        require_same_grid(pixels.grid, belief.grid, names=(str(tile.image), str(tile.prior)))
        extra = open_extra_input(stack, model, pixels, tile.prior if "prior" in model.extras else None)
        finish = make_finish(model, pixels, MapOptions())
        mapper = Mapper(model, pixels, belief, extra, finish=finish, device=run.device)
        if tile.sums is not None:
            mapper.sums.write(np.asarray(tile.sums))
        yield OpenTile(tile=tile, pixels=pixels, mapper=mapper)


def measure_sums(tile: PlaceTile, *, run: Run) -> list[list[float]]:
    """Sum q, the classes that q names, and the prior over a tile.

    Parameters
    ----------
    tile
        The tile.
    run
        Device, nodata value of the image, and progress.

    Returns
    -------
    list of list of float
        The sums, (3, C).

    Raises
    ------
    InputError
        If it has no pixel with image and prior.
    """
    stride = tile.model.network.stride
    with opening(tile, run=run) as one:
        sums: dict[str, Sink] = {"sums": one.mapper.sums}
        stream(
            one.mapper.gather,
            read=one.mapper.read_for_sums,
            grid=one.pixels.grid,
            sinks=sums,
            label="class sums",
            halo=one.mapper.halo,
            size=-(-choose_window(run.device) // stride) * stride,
            progress=run.progress,
        )
        if not one.mapper.sums.seen:
            msg = f"{tile.image} has no valid pixel with a prior; is its nodata value correct?"
            raise InputError(msg)
        return one.mapper.sums.to_list()


def begin_head(sums: Sequence[Sequence[Sequence[float]]], bands: int) -> Head:
    """Return the head that gives r.

    Parameters
    ----------
    sums
        Sums over each tile of a model (:func:`measure_sums`).
    bands
        Number of bands of the image.

    Returns
    -------
    Head
        The head that a fit begins with; it leaves out the classes that the training gave up.
    """
    total = ClassSums(len(sums[0][0]))
    for rows in sums:
        total.write(np.asarray(rows))
    head = Head.of_posterior(total.log_shares().numpy(), total.log_prior().numpy(), bands)
    return replace(head, left_out=np.array(total.given_up(), dtype=np.intp))


def visit_points(
    tile: PlaceTile, points: TilePoints, start: Head, seen: set[Any], *, run: Run
) -> tuple[list[LabelledPixel], set[tuple[int, Any]]]:
    """Return the points of a tile that no other had, and those that lie on pixels without data.

    Points of one class in one pixel count once, so that a file that is given twice changes nothing.

    Parameters
    ----------
    tile
        The tile, with the sums of its model.
    points
        Its points. Only windows around them are read.
    start
        The head that the fit begins with.
    seen
        Points of the tiles before; those of this one are added.
    run
        Device, nodata value of the image, and progress.

    Returns
    -------
    found : list of LabelledPixel
    empty : set
        File and feature of each.
    """
    labels = [
        ((number, index), label)
        for number, frame in enumerate(points.labels)
        for index, label in frame.iterrows()
        if (number, index) not in seen
    ]
    if not labels:
        return [], set()
    with opening(tile, run=run) as one:
        found, empty = _visit(one, labels, start, seen, progress=run.progress)
        one.mapper.release()  # smoothing needs no network
    return found, empty


def _visit(
    tile: OpenTile, labels: Sequence[tuple[Any, Any]], start: Head, seen: set[Any], *, progress: bool
) -> tuple[list[LabelledPixel], set[tuple[int, Any]]]:
    mapper, grid, stride = tile.mapper, tile.pixels.grid, tile.tile.model.network.stride
    found: list[LabelledPixel] = []
    empty: set[tuple[int, Any]] = set()
    pixels: set[tuple[int, int, int]] = set()
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
                mark=str(label["mark"]),
            )
        )
    return found, empty
