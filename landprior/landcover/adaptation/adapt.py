"""Adapting models to a place: a head fitted to labelled points takes the place of the posterior r.

The head is one for the whole place; each model keeps its own mean prediction. How good the adapted map is, is
estimated at the points by cross-validation: each group of neighbouring points is mapped by a head that was fitted
without it.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from landprior.errors import InputError
from landprior.landcover.adaptation.fitting import (
    Labelled,
    Share,
    choose_ridge,
    estimate_share,
    fit,
    group,
)
from landprior.landcover.mapping.class_sums import ClassSums
from landprior.landcover.mapping.mapper import Mapper
from landprior.landcover.mapping.memory import choose_window
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import check_image, make_finish, open_extra_input
from landprior.landcover.prior.sparse_labels import read_sparse_labels
from landprior.landcover.training.head import Head
from landprior.landcover.training.layers import ImageLayer, PriorLayer
from landprior.landcover.training.model import LandcoverModel, load_model, save_model
from landprior.progress import track
from landprior.raster.endings import check_named_output
from landprior.raster.grid import require_same_grid
from landprior.raster.windows import Block, grow_window, stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas
    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.mapping.mapper import Surroundings
    from landprior.raster.windows import Sink

logger = logging.getLogger(__name__)

LEAST_POINTS = 10
"""Fewer points than this are not enough to fit a head."""


@dataclass(frozen=True, kw_only=True)
class PlaceTile:
    """A tile of the place: image, prior and the model that maps it."""

    image: Path
    prior: Path
    model: LandcoverModel


@dataclass(frozen=True, kw_only=True)
class Report:
    """How good maps are at the points, with 95 % intervals.

    Parameters
    ----------
    points
        Number of points used.
    classes
        Name of each class -> its number of points.
    ridge
        The penalty that was chosen.
    prior
        The prior's most probable class.
    plain
        The finished map without points.
    half
        The adapted map if only half of the other points are used.
    adapted
        The adapted map; each point is mapped by a head that was fitted without it and its neighbours.
    designed
        Whether all points carry the design of a probability sample, by which they are weighted.
    proposed
        How many were proposed where a map was unsure (``landprior sample --for adapt``).
    """

    points: int
    classes: dict[str, int]
    ridge: float
    prior: Share
    plain: Share
    half: Share
    adapted: Share
    designed: bool
    proposed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return a table with a line of advice."""
        counts = ", ".join(f"{name} {count}" for name, count in self.classes.items() if count)
        rows = {
            "prior": self.prior,
            "map without points": self.plain,
            "adapted, half of the points": self.half,
            "adapted": self.adapted,
        }
        lines = [
            f"{self.points} points ({counts})",
            "accuracy at points that the fit has not seen, with its 95 % interval:",
            *(f"  {name:<28} {one.value:.3f}   {one.low:.3f} to {one.high:.3f}" for name, one in rows.items()),
            self.advise(),
        ]
        if self.proposed:
            lines.append(
                f"{self.proposed} points were proposed where a map was unsure, so the place as a whole is mapped better"
            )
        elif not self.designed:
            lines.append("the interval holds if the points are a random sample of the place")
        return "\n".join(lines)

    def advise(self) -> str:
        """Say whether the points helped, and whether more would."""
        gain, last = self.adapted.value - self.plain.value, self.adapted.value - self.half.value
        if gain < 0:
            return "the points do not improve the map; check their classes and positions, or keep the map without them"
        few = [name for name, count in self.classes.items() if 0 < count < FEW]
        lacking = f"; label more points of {', '.join(few)}" if few else ""
        if last > WORTHWHILE:
            return f"the second half of the points added {100 * last:.0f} %: more of them are likely to pay{lacking}"
        return f"the second half of the points added little: more of them are not likely to pay{lacking}"


FEW = 5
"""A class with fewer points is hardly learned from them."""

WORTHWHILE = 0.01
"""Gain by the second half of the points from which more of them are recommended."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Point:
    """A labelled pixel and what is needed to map it with any head."""

    features: Tensor
    surroundings: Surroundings
    mapper: Mapper
    at: tuple[int, int]
    """Row and column of the pixel in the core of its window."""
    position: int
    file: int
    share: float
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


def adapt(
    model: str | Path,
    pairs: Sequence[tuple[str | Path, str | Path]],
    points: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    column: str | None = None,
    layer: str | None = None,
    run: Run = Run(),
) -> Report:
    """Adapt a model to labelled points and write it.

    Parameters
    ----------
    model
        A model file.
    pairs
        Image and prior of each tile that has points, on the same grid.
    points
        Labelled points, any vector file or a CSV (:func:`landprior.landcover.prior.sparse_labels.read_sparse_labels`),
        or several. Points of a sample are weighted by the area they represent; those of a file weigh one on average.
        Points of several classes, lines and polygons do not count.
    output
        The adapted model, a .safetensors file: :func:`landprior.landcover.mapping.predict.predict` maps with it.
    column, layer
        Column with the label, by default ``class`` or else ``reference``, and layer of the file.
    run
        Device, nodata value of the images, progress, and whether to replace an existing model.

    Returns
    -------
    Report
        The accuracy at the points; also in the model's record.

    Raises
    ------
    LandpriorError
        See :func:`fit_head` and :func:`landprior.landcover.training.model.save_model`.
    """
    files = list_files(points)
    inputs = [model, *files, *(path for pair in pairs for path in pair)]
    target = check_named_output(output, "model", overwrite=run.overwrite, inputs=inputs)
    loaded = load_model(model)
    tiles = [PlaceTile(image=Path(image), prior=Path(prior), model=loaded) for image, prior in pairs]
    heads, report = fit_head(tiles, files, column=column, layer=layer, run=run)
    save_model(adapted_model(loaded, heads[0], files, report), target, overwrite=run.overwrite)
    return report


def list_files(points: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Return one file or several as a list."""
    return [points] if isinstance(points, str | Path) else [*points]


def adapted_model(
    model: LandcoverModel, head: Head, points: str | Path | Sequence[str | Path], report: Report
) -> LandcoverModel:
    """Return a model with a head, and the report in its record.

    Parameters
    ----------
    model
        The model.
    head
        Its head.
    points
        The files of the points, for the record.
    report
        What :func:`fit_head` found.

    Returns
    -------
    LandcoverModel
        The adapted model.
    """
    adaptation = {"files": [Path(file).name for file in list_files(points)], **report.to_dict()}
    return replace(model, head=head, record={**model.record, "adaptation": adaptation})


def fit_head(
    tiles: Sequence[PlaceTile],
    points: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    layer: str | None = None,
    run: Run = Run(),
) -> tuple[list[Head], Report]:
    """Fit one head to the points of a place.

    Parameters
    ----------
    tiles
        The tiles, whose models have the same classes. A point on several tiles counts for the first that has
        data there. Tiles of one model share their mean prediction.
    points, column, layer
        See :func:`adapt`.
    run
        Device, nodata value of the images, and progress.

    Returns
    -------
    heads : list of Head
        One per tile: the same weights, with the mean prediction of the tile's model.
    report : Report
        The accuracy at the points.

    Raises
    ------
    InputError
        If fewer than :data:`LEAST_POINTS` points lie on pixels with data, or the file has none for the place.
    ModelError, GridMismatchError, SchemeError
        If models, images and priors do not fit each other.
    """
    files = list_files(points)
    with ExitStack() as stack:
        opened = [
            _open(stack, tile, files, column=column, layer=layer, needed=len(tiles) == 1, run=run) for tile in tiles
        ]
        shared: dict[int, list[_Opened]] = {}
        for one in opened:
            shared.setdefault(id(one.tile.model), []).append(one)
        starts: dict[int, Head] = {}
        for key, some in shared.items():
            starts[key] = _begin(some, run=run)
        found: list[_Point] = []
        seen: set[Any] = set()
        left_out = 0
        for one in opened:
            mapped, empty = _visit(one, starts[id(one.tile.model)], seen, progress=run.progress)
            found += mapped
            left_out += empty
        names = ", ".join(str(file) for file in files)
        if left_out:
            logger.warning("%s: %d points lie on pixels without data and are left out", names, left_out)
        if len(found) < LEAST_POINTS:
            msg = f"{names}: {len(found)} points have one class and lie on data; at least {LEAST_POINTS} are needed"
            raise InputError(msg)
        proposed = sum(one.proposed for one in opened)
        designed = opened[0].designed and not proposed
        start = starts[id(tiles[0].model)]
        head, report = _fit(found, start, tiles[0].model.scheme.names, designed=designed, proposed=proposed)
        heads = [replace(starts[id(tile.model)], weights=head.weights, bias=head.bias) for tile in tiles]
    return heads, report


@dataclass(frozen=True, eq=False, kw_only=True)
class _Opened:
    """A tile that is open, with its points."""

    tile: PlaceTile
    pixels: ImageLayer
    mapper: Mapper
    labels: list[geopandas.GeoDataFrame]
    designed: bool
    proposed: int


def _open(
    stack: ExitStack,
    tile: PlaceTile,
    points: Sequence[str | Path],
    *,
    column: str | None,
    layer: str | None,
    needed: bool,
    run: Run,
) -> _Opened:
    """Open a tile and read its points; an adapted model begins anew, without its head."""
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
    return _Opened(
        tile=tile,
        pixels=pixels,
        mapper=mapper,
        labels=[labels.locate_points(pixels.grid) for labels in read],
        designed=any(labels.designed for labels in read),
        proposed=sum(labels.proposed for labels in read),
    )


def _begin(tiles: Sequence[_Opened], *, run: Run) -> Head:
    """Sum q and the prior over the tiles of a model, and return the head that gives r."""
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
    return Head.of_posterior(total.log_shares().numpy(), total.log_prior().numpy(), model.bands)


def _visit(tile: _Opened, start: Head, seen: set[Any], *, progress: bool) -> tuple[list[_Point], int]:
    """Return the points of a tile that no other had, and how many lie on pixels without data."""
    mapper, grid, stride = tile.mapper, tile.pixels.grid, tile.tile.model.network.stride
    found, empty = [], 0
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
            empty += 1
            continue
        seen.add(key)
        mapped = mapper.compute(block, data, ("probabilities",))["probabilities"]
        shares = mapped() if callable(mapped) else mapped
        found.append(
            _Point(
                features=visible[0],
                surroundings=visible[1],
                mapper=mapper,
                at=at,
                position=int(label["position"]),
                file=key[0],
                share=float(label["share"]),
                prior=int(visible[0][len(start.bias) : 2 * len(start.bias)][:, *visible[1].core][:, *at].argmax()),
                plain=int(shares[:, *at].argmax()),
                x=float(label.geometry.x),
                y=float(label.geometry.y),
            )
        )
    return found, empty


def _fit(
    found: Sequence[_Point], start: Head, names: Sequence[str], *, designed: bool, proposed: int
) -> tuple[Head, Report]:
    """Fit the head, and estimate how good its map is."""
    shares, files = (np.array([getattr(one, name) for one in found]) for name in ("share", "file"))
    for file in np.unique(files):
        shares[files == file] /= shares[files == file].mean()
    truth = np.array([one.position for one in found])
    groups = group(np.array([one.x for one in found]), np.array([one.y for one in found]))
    labelled = Labelled(
        features=np.stack([one.middle() for one in found], axis=1),
        classes=truth,
        shares=shares,
        groups=groups,
    )
    ridge = choose_ridge(labelled, start)
    # every second point of a group, so that halves are spread alike
    order = np.argsort(groups, kind="stable")
    halved = np.zeros(len(found), dtype=bool)
    halved[order[::2]] = True

    def cross(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        right = np.zeros(len(found), dtype=bool)
        for left_out in np.unique(groups):
            head = fit(labelled.take((groups != left_out) & chosen), start, ridge)
            for index in np.flatnonzero(groups == left_out):
                right[index] = found[int(index)].map(head) == truth[index]
        return right

    def share(right: NDArray[np.bool_]) -> Share:
        return estimate_share(right, labelled.shares)

    counts = np.bincount(truth, minlength=len(names))
    report = Report(
        points=len(found),
        classes=dict(zip(names, counts.tolist(), strict=True)),
        ridge=ridge,
        prior=share(np.array([one.prior for one in found]) == truth),
        plain=share(np.array([one.plain for one in found]) == truth),
        half=share(cross(halved)),
        adapted=share(cross(np.ones(len(found), dtype=bool))),
        designed=designed,
        proposed=proposed,
    )
    return fit(labelled, start, ridge), report
