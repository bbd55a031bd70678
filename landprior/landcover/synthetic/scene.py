"""A synthetic scene: a realistic place with known 1 m truth, for the demo and for tests.

From a seed: farmland parcels, woods of single crowns with a sunny and a shaded side, hedgerows, a
village with streets, houses, drives and garden trees, a river, ponds and a gravel pit. From 1.5 km on the village
is a town, and roads with single farms cross the country around it. Then the data a user
would have for such a place: a 4-band image, NLCD codes by NLCD's own rules on 30 m cells that are
rotated by a few degrees (as Albers is to UTM) and generalised, and OpenStreetMap-like vectors and
footprints with omissions and shifts. Colours overlap on purpose (lush crops and crowns, dry grass and
soil, shadow and water, roofs and soil), so that colour alone does not separate the classes.
"""

# Over 450 lines: one generator, whose steps share the scene they paint and are not usable alone.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy import ndimage
from scipy.spatial import cKDTree
from shapely import affinity, intersects
from shapely.geometry import LineString, Point, Polygon, box

from landprior.errors import InputError
from landprior.landcover.synthetic.nlcd import BARREN, GRASS, IMPERVIOUS, TREES, WATER, derive_nlcd
from landprior.raster.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

Climate = Literal["temperate", "arid"]
"""Temperate: fields and woods. Arid: soil with scattered shrubs instead of grass, few trees."""

SCENE_CRS = CRS.from_epsg(26917)
_ORIGIN = (680_000.0, 4_210_000.0)
_WIDE = 1500
"""Side, in metres, from which a scene is a town and its country."""

_COUNTRY_ROAD = 2.75
"""Half width of a country road, metres."""

_SUN = (0.8, 0.6)
"""Direction in which shadows fall, in (columns, rows)."""

# Mean colours (red, green, blue, near infrared) of the materials.
_COLOURS = {
    "deciduous": (66, 86, 60, 142),
    "evergreen": (50, 68, 52, 108),
    "gravel": (192, 178, 152, 158),
    "desert": (178, 154, 126, 140),
    "asphalt": (124, 124, 124, 104),
    "concrete": (178, 174, 164, 148),
    "dark roof": (88, 86, 88, 80),
    "brown roof": (134, 108, 94, 110),
    "red roof": (152, 100, 84, 116),
    "white roof": (214, 212, 206, 186),
    "river": (84, 92, 78, 46),
    "pond": (48, 64, 66, 30),
}
# Herbs run from lush to dry, soil from dark to pale; every patch of ground lies in between.
_HERBS = ((72, 94, 62, 150), (112, 128, 86, 152), (160, 146, 110, 134))
_SOILS = ((114, 100, 84, 98), (158, 134, 108, 124), (174, 156, 124, 142))
_ROOFS = ("dark roof", "brown roof", "red roof", "white roof", "concrete")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A synthetic place and its layers, all on one 1 m grid.

    Parameters
    ----------
    grid
        UTM, 1 m.
    image
        Red, green, blue, near infrared, uint8, shape (4, H, W).
    truth
        enviroatlas-5 codes, uint8, shape (H, W).
    nlcd
        NLCD codes, uint8, shape (H, W).
    layers
        ``roads``, ``buildings``, ``waterways``, ``waterbodies``: 0/1, uint8, shape (H, W).
    vectors
        The layers as geometries in map coordinates, as a mapper would draw them.
    """

    grid: Grid
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    nlcd: NDArray[np.uint8]
    layers: dict[str, NDArray[np.uint8]]
    vectors: dict[str, list[BaseGeometry]] = field(repr=False)


def make_scene(size: int = 768, *, seed: int = 0, climate: Climate = "temperate") -> Scene:
    """Make a scene.

    Parameters
    ----------
    size
        Side in metres (= pixels), at least 128.
    seed
        Random seed; the same seed gives the same scene.
    climate
        See :data:`Climate`.

    Returns
    -------
    Scene
        Image, NLCD, layers and the truth, on one grid of 1 m.

    Raises
    ------
    InputError
        If the size is too small or the climate unknown.
    """
    if size < 128:
        msg = f"a scene needs a side of at least 128 m, not {size}"
        raise InputError(msg)
    if climate not in get_args(Climate):
        msg = f"climate is one of {', '.join(get_args(Climate))}, not {climate!r}"
        raise InputError(msg)
    return _Painter(size, np.random.default_rng(seed), arid=climate == "arid").scene()


class _Painter:
    """Paint the ground, then the objects on it, then the light, and update the truth with each."""

    def __init__(self, size: int, rng: Generator, *, arid: bool) -> None:
        self.n = size
        self.rng = rng
        self.arid = arid
        self.colour = np.zeros((4, size, size), dtype=np.float32)
        self.truth = np.zeros((size, size), dtype=np.uint8)
        self.height = np.zeros((size, size), dtype=np.float32)
        self.use = np.zeros((size, size), dtype=np.uint8)  # the NLCD code of the land use, where nothing is built
        self.vectors: dict[str, list[BaseGeometry]] = {
            "roads": [],
            "buildings": [],
            "waterways": [],
            "waterbodies": [],
        }

    def scene(self) -> Scene:
        """Paint everything and derive the data a user would have."""
        n = self.n
        village = self._village()
        self._fields(village)
        river = self._river()
        self._ponds(river)
        self._pit(village)
        streets = self._streets(village)
        self._roads(streets)
        self._houses(streets, river)
        woods = self._woods(village, river)
        self._single_trees(village, woods)
        image = self._light()
        nlcd = derive_nlcd(self.truth, self.use, self.rng)
        to_map = Affine.translation(_ORIGIN[0], _ORIGIN[1] + n) @ Affine.scale(1, -1)
        grid = Grid(width=n, height=n, transform=to_map, crs=SCENE_CRS)
        layers = {name: self._burn(shapes, name) for name, shapes in self.vectors.items()}
        frame = box(0, 0, n, n)
        on_map = {
            name: [
                affinity.affine_transform(part, [1, 0, 0, -1, _ORIGIN[0], _ORIGIN[1] + n])
                for part in (shape.intersection(frame) for shape in shapes)
                if not part.is_empty
            ]
            for name, shapes in self.vectors.items()
        }
        return Scene(grid=grid, image=image, truth=self.truth, nlcd=nlcd, layers=layers, vectors=on_map)

    # -- helpers ---------------------------------------------------------------------------------

    def _noise(self, scale: float) -> NDArray[np.float32]:
        """Return smooth noise with mean 0 and standard deviation 1."""
        step = max(int(scale / 8), 1) if self.n >= _WIDE else 1  # smooth noise needs no finer grid
        side = -(-self.n // step)
        noise = ndimage.gaussian_filter(self.rng.standard_normal((side, side)), scale / step, mode="wrap")
        if side < self.n:
            noise = ndimage.zoom(noise, self.n / side, order=1, mode="nearest")
        return np.asarray(noise / noise.std(), dtype=np.float32)

    def _mask(self, shapes: Sequence[BaseGeometry]) -> NDArray[np.bool_]:
        mask = np.zeros((self.n, self.n), dtype=bool)
        rows, columns = self._around(shapes)
        mask[rows, columns] = self._burn_window(shapes, (rows, columns))
        return mask

    def _around(self, shapes: Sequence[BaseGeometry]) -> tuple[slice, slice]:
        """Return the rows and columns that shapes reach."""
        bounds = [shape.bounds for shape in shapes if not shape.is_empty]
        if not bounds:
            return slice(0, 0), slice(0, 0)
        left, top = np.min(bounds, axis=0)[:2]
        right, bottom = np.max(bounds, axis=0)[2:]
        low, high = np.clip([top - 1, left - 1], 0, self.n), np.clip([bottom + 2, right + 2], 0, self.n)
        return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))

    def _burn_window(self, shapes: Sequence[BaseGeometry], at: tuple[slice, slice]) -> NDArray[np.bool_]:
        """Rasterise shapes in a window."""
        rows, columns = at
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        shapes = [shape for shape in shapes if not shape.is_empty]
        if not shapes or not min(shape):
            return np.zeros(shape, dtype=bool)
        to_scene = Affine.translation(columns.start, rows.start)
        return np.asarray(rasterize(shapes, out_shape=shape, transform=to_scene, dtype="uint8"), dtype=bool)

    def _paint_shape(
        self, shape: BaseGeometry, material: str, code: int, *, texture: float = 0.05, height: float = 0.0
    ) -> None:
        """Cover a shape with a material."""
        at = self._around([shape])
        self._paint(self._burn_window([shape], at), material, code, texture=texture, height=height, at=at)

    def _paint(
        self,
        where: NDArray[np.bool_],
        material: str,
        code: int,
        *,
        texture: float = 0.05,
        height: float = 0.0,
        at: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        """Cover pixels of a window with a material with a slightly different brightness and tint for each object."""
        tint = 1 + 0.025 * self.rng.standard_normal((4, 1)) + 0.06 * self.rng.standard_normal()
        grain = 1 + texture * self.rng.standard_normal(int(where.sum()))
        self.colour[:, *at][:, where] = np.array(_COLOURS[material])[:, None] * tint * grain
        self.truth[at][where] = code
        self.height[at][where] = height

    def _burn(self, shapes: Sequence[BaseGeometry], name: str) -> NDArray[np.uint8]:
        """Rasterise drawn vectors as the paper did: roads three pixels wide, waterways one."""
        if name == "roads":
            shapes = [shape.buffer(1.5) for shape in shapes]
        elif name == "waterways":
            shapes = [shape.buffer(0.6) for shape in shapes]
        return self._mask(shapes).astype(np.uint8)

    # -- ground ----------------------------------------------------------------------------------

    def _village(self) -> NDArray[np.bool_]:
        rows, columns = np.mgrid[: self.n, : self.n] / self.n
        x, y = self.rng.uniform(0.35, 0.65, 2)
        wobble = 0.04 * self._noise(self.n / 16)
        reach = np.hypot((columns - x) / 0.30, (rows - y) / 0.24) + wobble
        return np.asarray(reach < 1)

    def _fields(self, village: NDArray[np.bool_]) -> None:
        """Lay out parcels of crops, pasture and meadow, and lawns in the village."""
        count = max(int((self.n / 110) ** 2), 4)
        seeds = self.rng.uniform(0, self.n, (count, 2))
        rows, columns = np.mgrid[: self.n, : self.n].astype(np.float32)
        bend = 6 * self._noise(self.n / 24)
        parcels = cKDTree(seeds).query(np.stack([rows + bend, columns * 1.0], -1).reshape(-1, 2))[1]
        self.parcels = parcels.reshape(self.n, self.n)
        # (code, NLCD use, tone of lush..dry or dark..pale, share of the parcels)
        kinds: list[tuple[int, int, tuple[float, float], float]] = (
            [(BARREN, 52, (0.6, 1.0), 0.62), (GRASS, 71, (0.6, 1.0), 0.2), (BARREN, 82, (0.2, 0.8), 0.18)]
            if self.arid
            else [
                (GRASS, 81, (0.2, 0.7), 0.26),
                (GRASS, 71, (0.5, 1.0), 0.16),
                (GRASS, 82, (0.0, 0.6), 0.36),  # NAIP is flown in the growing season
                (BARREN, 82, (0.0, 1.0), 0.22),
            ]
        )
        chosen = self.rng.choice(len(kinds), size=count, p=[kind[3] for kind in kinds])
        tone = 0.22 * self._noise(9) + 0.12 * self._noise(4)
        found = ndimage.find_objects(self.parcels + 1, max_label=count)
        for parcel in range(count):
            code, use, (low, high), _ = kinds[chosen[parcel]]
            at = found[parcel] or (slice(0, 0), slice(0, 0))
            where = self.parcels[at] == parcel
            self._soften(where, code, tone[at] + self.rng.uniform(low, high), at=at)
            self.use[at][where] = use
            if use == 82:  # drilling rows
                angle = self.rng.uniform(0, np.pi)
                phase = (columns[at] * np.cos(angle) + rows[at] * np.sin(angle)) * (2 * np.pi / self.rng.uniform(4, 9))
                self.colour[:, *at][:, where] *= 1 + 0.05 * np.sin(phase[where])
        self._soften(village, BARREN if self.arid else GRASS, tone + (0.8 if self.arid else 0.4))
        self.use[village] = 52 if self.arid else 71
        bare = (self._noise(3.5) > 2.3) & (self.truth == GRASS)  # worn ground, building sites, tracks
        self._soften(bare, BARREN, tone + 0.6)
        patches = 1 + 0.08 * self._noise(9) + 0.13 * self._noise(1.6)
        self.colour *= patches

    def _soften(
        self,
        where: NDArray[np.bool_],
        code: int,
        tone: NDArray[np.floating],
        *,
        at: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        """Cover ground with herbs or soil; the tone, 0..1, runs from lush to dry or from dark to pale."""
        steps = np.array(_SOILS if code == BARREN else _HERBS, dtype=np.float32)
        place = np.clip(tone[where], 0, 1) * (len(steps) - 1)
        low = np.minimum(place.astype(int), len(steps) - 2)
        share = (place - low)[:, None]
        tint = 1 + 0.02 * self.rng.standard_normal((4, 1))
        grain = 1 + 0.05 * self.rng.standard_normal(int(where.sum()))
        self.colour[:, *at][:, where] = ((1 - share) * steps[low] + share * steps[low + 1]).T * tint * grain
        self.truth[at][where] = code
        self.height[at][where] = 0

    def _river(self) -> LineString:
        t = np.linspace(-0.1, 1.1, 60)
        start, swing = self.rng.uniform(0.08, 0.22), self.rng.uniform(0.04, 0.08)
        x = start + 0.12 * t + swing * np.sin(2 * np.pi * (t * self.rng.uniform(1.2, 1.8) + self.rng.uniform()))
        line = LineString(np.column_stack([x, t]) * self.n)
        self._paint_shape(line.buffer(self.rng.uniform(6, 9)), "river", WATER, texture=0.04)
        self.vectors["waterways"].append(affinity.translate(line, *self.rng.normal(0, 1.5, 2)))
        return line

    def _ponds(self, river: LineString) -> None:
        for _ in range(max(round(self.n / 130), 2)):
            spot = Point(self.rng.uniform(0.05, 0.95, 2) * self.n)
            if spot.distance(river) < 40:
                continue
            pond = affinity.rotate(
                affinity.scale(spot.buffer(self.rng.uniform(8, 24)), 1, self.rng.uniform(0.5, 0.9)),
                self.rng.uniform(0, 180),
            )
            self._paint_shape(pond, str(self.rng.choice(["pond", "river"])), WATER, texture=0.04)
            if self.rng.random() < 0.7:
                self.vectors["waterbodies"].append(affinity.translate(pond, *self.rng.normal(0, 2, 2)))

    def _pit(self, village: NDArray[np.bool_]) -> None:
        """Dig a gravel pit; NLCD calls it barren."""
        spot = Point(self.rng.uniform(0.7, 0.9) * self.n, self.rng.uniform(0.1, 0.9) * self.n)
        where = self._mask([affinity.scale(spot.buffer(self.n / 15), 1, 0.7)]) & ~village
        self._paint(where, "gravel", BARREN, texture=0.08)
        self.use[where] = 31

    # -- buildings and streets ---------------------------------------------------------------------------

    def _streets(self, village: NDArray[np.bool_]) -> list[tuple[LineString, float]]:
        """Lay out a bent main road, a country road, and a rotated grid of streets; (line, half width)."""
        n, rng = self.n, self.rng
        t = np.linspace(-0.05, 1.05, 30)
        rows, columns = np.nonzero(village)
        cx, cy = columns.mean() / n, rows.mean() / n
        main = np.column_stack([t, cy + 0.05 * np.sin(2 * np.pi * (t + rng.uniform())) * np.abs(t - cx) * 2])
        cross = np.column_stack([cx + 0.06 * np.sin(2 * np.pi * (t + rng.uniform())) * np.abs(t - cy) * 2, t])
        streets = [(LineString(main * n), 4.5), (LineString(cross * n), 3.5)]
        if n >= _WIDE:
            streets += [(line, _COUNTRY_ROAD) for line in self._country_roads(t)]
        reach = village_shape(village)
        angle = rng.uniform(-20, 20)
        for offset in np.arange(-n, n, rng.uniform(62, 72)):
            for turned in (angle, angle + 90):
                step = offset if turned == angle else offset * 1.5
                line = LineString([(cx * n - 2 * n, cy * n + step), (cx * n + 2 * n, cy * n + step)])
                part = affinity.rotate(line, turned, origin=(cx * n, cy * n)).intersection(reach)
                pieces = getattr(part, "geoms", [part])
                streets.extend((p, 3.0) for p in pieces if isinstance(p, LineString) and p.length > 60)
        return streets

    def _country_roads(self, t: NDArray[np.floating]) -> list[LineString]:
        """Return two roads in each direction, on both sides of the town."""
        roads = []
        for turned in (False, True):
            for place in (0.12, 0.88):
                bend = place + 0.04 * np.sin(2 * np.pi * (t * self.rng.uniform(0.8, 1.6) + self.rng.uniform()))
                points = np.column_stack([bend, t] if turned else [t, bend]) * self.n
                roads.append(LineString(points))
        return roads

    def _roads(self, streets: list[tuple[LineString, float]]) -> None:
        drift = self.rng.normal(0, 1.2, 2)
        for line, half in streets:
            material = str(self.rng.choice(["asphalt", "asphalt", "concrete", "dark roof"]))
            self._paint_shape(line.buffer(half, cap_style="flat"), material, IMPERVIOUS, texture=0.04)
            if half > 3 or self.rng.random() < 0.8:  # some streets are missing from the map
                shift = drift + self.rng.normal(0, 0.8, 2)
                self.vectors["roads"].append(affinity.translate(line, *shift))

    def _houses(self, streets: list[tuple[LineString, float]], river: LineString) -> None:
        """Place houses with drives along the streets, and a few sheds and car parks on the main road."""
        rng = self.rng
        taken: list[Polygon] = [river.buffer(15)]
        roads = [line.buffer(half + 1) for line, half in streets]
        for line, half in streets:
            small = half == 3.0
            skipped = 0.16 if small else 0.95 if half == _COUNTRY_ROAD else 0.75
            at = rng.uniform(8, 20)
            while at < line.length - 8:
                here, ahead = line.interpolate(at), line.interpolate(at + 1)
                dx, dy = ahead.x - here.x, ahead.y - here.y
                turn = np.degrees(np.arctan2(dy, dx))
                for side in (-1, 1):
                    if rng.random() < skipped:
                        continue
                    big = not small and rng.random() < 0.35
                    width, depth = (rng.uniform(20, 40, 2)) if big else rng.uniform(9, 15, 2)
                    back = half + rng.uniform(5, 12) + depth / 2
                    x, y = here.x - side * dy * back, here.y + side * dx * back
                    house = affinity.rotate(
                        box(x - width / 2, y - depth / 2, x + width / 2, y + depth / 2), turn + rng.normal(0, 4)
                    )
                    if intersects(house, taken).any() or intersects(house, roads).any():
                        continue
                    taken.append(house.buffer(2))
                    if big:
                        lot = house.buffer(rng.uniform(8, 16), join_style="mitre")
                        self._paint_shape(lot, str(rng.choice(["asphalt", "concrete"])), IMPERVIOUS)
                    elif rng.random() < 0.7:
                        drive = LineString([(x + 3 * dx, y + 3 * dy), (here.x + 3 * dx, here.y + 3 * dy)]).buffer(1.6)
                        self._paint_shape(drive, str(rng.choice(["concrete", "asphalt", "gravel"])), IMPERVIOUS)
                    self._paint_shape(house, str(rng.choice(_ROOFS)), IMPERVIOUS, height=rng.uniform(3, 6))
                    if rng.random() < 0.78:  # some footprints are missing
                        self.vectors["buildings"].append(affinity.translate(house, *rng.normal(0, 1.3, 2)))
                at += rng.uniform(17, 27)

    # -- trees -----------------------------------------------------------------------------------

    def _woods(self, village: NDArray[np.bool_], river: LineString) -> NDArray[np.bool_]:
        """Grow closed woods, hedgerows between some parcels, a gallery along the river."""
        share = 0.03 if self.arid else 0.24
        noise = self._noise(self.n / 18)
        wooded = noise > np.quantile(noise, 1 - share)
        edges = np.zeros_like(wooded)
        for axis in (0, 1):
            differ = np.diff(self.parcels, axis=axis) != 0
            edges |= np.pad(differ, [(0, 1), (0, 0)] if axis == 0 else [(0, 0), (0, 1)])
        hedge = ndimage.binary_dilation(edges & (self._noise(self.n / 20) > 0.5), iterations=4)
        gallery = self._mask([river.buffer(22)]) & (self._noise(10) > 0.2)
        if self.arid:
            hedge[:] = False
        open_ground = (self.height == 0) & ~np.isin(self.truth, [WATER, IMPERVIOUS]) & (self.use != 31)
        woods = (wooded | hedge | gallery) & ~village & open_ground
        woods = ndimage.binary_opening(woods, iterations=1)
        kind = self._noise(self.n / 14) > 0.6
        self.use[woods] = np.where(kind[woods], 42, 41)
        near_river = self._mask([river.buffer(45)])
        self.use[woods & near_river] = 90
        crowns = self._scatter(woods, spacing=5.0)
        self._crowns(crowns, woods, evergreen=kind)
        return np.asarray(woods, dtype=bool)

    def _single_trees(self, village: NDArray[np.bool_], woods: NDArray[np.bool_]) -> None:
        """Garden, street and field trees; crowns hang over roads and roofs."""
        density = np.where(village, 0.0011 if self.arid else 0.0042, 0.0004 if self.arid else 0.0005)
        spots = (self.rng.random((self.n, self.n)) < density) & ~woods & (self.truth != WATER)
        rows, columns = np.nonzero(spots)
        radius = self.rng.uniform(1.6, 5.5, rows.size)
        where = self._mask([Point(c, r).buffer(rad) for r, c, rad in zip(rows, columns, radius, strict=True)])
        where &= (self.height == 0) | (self.rng.random() < 0.5)
        self._crowns(np.column_stack([rows, columns]).astype(float), where, evergreen=self._noise(20) > 0.8)

    def _scatter(self, where: NDArray[np.bool_], *, spacing: float) -> NDArray[np.float64]:
        """Return jittered points about ``spacing`` apart inside a mask, (row, column)."""
        axis = np.arange(spacing / 2, self.n, spacing)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        points = grid + self.rng.uniform(-spacing / 2.2, spacing / 2.2, grid.shape)
        inside = where[tuple(np.clip(points.astype(int), 0, self.n - 1).T)]
        return np.asarray(points[inside], dtype=np.float64)

    def _crowns(self, centres: NDArray[np.float64], where: NDArray[np.bool_], *, evergreen: NDArray[np.bool_]) -> None:
        """Cover pixels with crowns: each with its own tint, lit on one side, dark between and behind."""
        if not len(centres) or not where.any():
            return
        rows, columns = np.nonzero(where)
        away, nearest = cKDTree(centres).query(np.column_stack([rows, columns]))
        offset = np.column_stack([rows, columns]) - centres[nearest]
        lit = -(offset[:, 1] * _SUN[0] + offset[:, 0] * _SUN[1]) / 3.0
        shade = np.clip(1 + 0.30 * lit - 0.055 * np.maximum(away - 1.5, 0) ** 1.5, 0.42, 1.5)
        tint = (
            1 + 0.12 * self.rng.standard_normal((len(centres), 1)) + 0.05 * self.rng.standard_normal((len(centres), 4))
        )
        base = np.where(
            evergreen[rows, columns][:, None], np.array(_COLOURS["evergreen"]), np.array(_COLOURS["deciduous"])
        )
        grain = 1 + 0.06 * self.rng.standard_normal((rows.size, 1))
        self.colour[:, rows, columns] = (base * tint[nearest] * shade[:, None] * grain).T
        self.truth[where] = TREES
        self.height[where] = np.maximum(3.0, 9.0 - 1.2 * away)

    # -- light, and the derived products ------------------------------------------------

    def _light(self) -> NDArray[np.uint8]:
        """Cast shadows, add haze and the sensor's blur and noise."""
        shadow = np.zeros((self.n, self.n), dtype=bool)
        for length in range(1, 10):
            dr, dc = round(length * _SUN[1]), round(length * _SUN[0])
            tall = np.zeros_like(self.height)
            tall[dr:, dc:] = self.height[: self.n - dr, : self.n - dc]
            shadow |= tall > self.height + 0.9 * length
        depth = np.where(shadow, np.array([0.42, 0.45, 0.56, 0.40], np.float32)[:, None, None], np.float32(1))
        image = self.colour * ndimage.gaussian_filter(depth, (0, 0.5, 0.5))
        image *= 1 + 0.04 * self._noise(self.n / 5)
        image = ndimage.gaussian_filter(image, (0, 0.65, 0.65))
        image += self.rng.normal(0, 5.0, image.shape)
        return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def village_shape(village: NDArray[np.bool_]) -> Polygon:
    """Return the outline of the village, simplified, in pixels."""
    rows, columns = np.nonzero(village)
    points = np.column_stack([columns, rows])[:: max(rows.size // 4000, 1)]
    return Polygon(LineString(points).convex_hull.exterior)
