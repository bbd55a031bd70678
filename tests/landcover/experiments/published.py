"""Small directories with exactly the layout of torchgeo's EnviroAtlas and ChesapeakeCVPR data sets."""

import geopandas
import numpy as np
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import box

from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.fusion import prior_from_arrays
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.raster.scheme import load_scheme

CITIES = {
    "pittsburgh_pa-2010_1m": (26917, ("train", "val", "test", "val5")),
    "durham_nc-2012_1m": (26917, ("test", "val5")),
    "austin_tx-2012_1m": (26914, ("test", "val5")),
    "phoenix_az-2010_1m": (26912, ("test", "val5")),
}
STATES = {"de": "2013", "md": "2013", "va": "2014", "wv": "2014", "pa": "2013", "ny": "2013"}

# torchgeo looks for these tiles by name
AUSTIN_TILE, WV_TILE = "3009726_sw", "m_3708035_ne_17_1"


class Writer:
    """Writes tiles and remembers them for the index."""

    def __init__(self, root, side, seed):
        self.root, self.side, self.rng = root, side, np.random.default_rng(seed)
        self.rows, self._places = [], 0

    def grid(self, epsg):
        self._places += 1
        left = 300_000.0 + 10_000 * self._places
        transform = Affine(1, 0, left, 0, -1, 4_300_000.0)
        return Grid(width=self.side, height=self.side, transform=transform, crs=CRS.from_epsg(epsg))

    def write(self, path, values, grid):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_raster(target, np.asarray(values, dtype=np.uint8), grid, overviews="nearest")
        return path

    def index(self, grid, split, **files):
        frame = geopandas.GeoSeries([box(*grid.bounds)], crs=grid.crs).to_crs(3857)
        self.rows.append({"split": split, "geometry": frame.iloc[0], **files})

    def close(self, path):
        geopandas.GeoDataFrame(self.rows, geometry="geometry", crs=3857).to_file(path, driver="GeoJSON")

    def scene(self, codes, colours, nlcd_of):
        """Patches of a few classes: labels, an image in their colours, and NLCD codes of the 30 m majority."""
        side = self.side
        pick = self.rng.integers(0, len(codes), (side // 12 + 1, side // 12 + 1))
        classes = np.kron(pick, np.ones((12, 12), dtype=int))[:side, :side]
        labels = np.array(codes)[classes]
        image = np.array(colours)[classes].transpose(2, 0, 1) + self.rng.integers(-12, 13, (4, side, side))
        nlcd = np.zeros((side, side), dtype=int)
        for top in range(0, side, 30):
            for left in range(0, side, 30):
                at = (slice(top, top + 30), slice(left, left + 30))
                nlcd[at] = nlcd_of[np.bincount(classes[at].ravel()).argmax()]
        return labels, np.clip(image, 1, 254), nlcd, classes


COLOURS = [(40, 60, 70, 30), (150, 150, 150, 110), (60, 90, 60, 150), (120, 140, 90, 170)]


def make_enviroatlas(root, *, side=72, tiles=2, seed=0):
    """Make torchgeo's EnviroAtlas directory; the second Austin tile has a field with code 80, and Phoenix has shrub."""
    folder = root / "enviroatlas_lotp"
    writer = Writer(folder, side, seed)
    scheme = load_scheme("enviroatlas-5")
    matrix = load_cooccurrence(None, scheme)
    for city, (epsg, splits) in CITIES.items():
        for split in splits:
            for number in range(tiles):
                stem = AUSTIN_TILE if (city[:6], number) == ("austin", 0) else f"{epsg % 100}0{number}_{split}"
                grid = writer.grid(epsg)
                labels, image, nlcd, classes = writer.scene([10, 20, 40, 70], COLOURS, [11, 23, 41, 71])
                if city.startswith("austin") and number == 1:
                    labels[:5, :5] = 80
                if city.startswith("phoenix"):
                    labels[-9:, -9:] = 52
                base = f"{city}-{split}_tiles-debuffered/{stem}"
                roads, water = classes == 1, classes == 0
                prior = prior_from_arrays(nlcd, matrix, roads=roads, waterbodies=water)
                plain = prior_from_arrays(nlcd, matrix)
                layers = {
                    "naip": ("a_naip", image),
                    "nlcd": ("b_nlcd", nlcd),
                    "roads": ("c_roads", roads),
                    "water": ("d_water", water),
                    "waterways": ("d1_waterways", np.zeros_like(water)),
                    "waterbodies": ("d2_waterbodies", water),
                    "buildings": ("e_buildings", np.zeros_like(water)),
                    "lc": ("h_highres_labels", labels),
                }
                files = {
                    name: writer.write(f"{base}_{ending}.tif", values, grid)
                    for name, (ending, values) in layers.items()
                }
                writer.write(f"{base}_prior_from_cooccurrences_101_31.tif", 255 * prior, grid)
                writer.write(f"{base}_prior_from_cooccurrences_101_31_no_osm_no_buildings.tif", 255 * plain, grid)
                writer.index(grid, f"{city}-{split}", **files)
    writer.close(folder / "spatial_index.geojson")
    return root


def make_chesapeake(root, *, side=72, tiles=1, seed=0):
    """Make torchgeo's ChesapeakeCVPR directory with the prior extension."""
    writer = Writer(root, side, seed)
    scheme = load_scheme("chesapeake-4")
    matrix = load_cooccurrence(None, scheme)
    ending = "prior_from_cooccurrences_101_31_no_osm_no_buildings"
    for state, year in STATES.items():
        for split in ("train", "val", "test"):
            for number in range(tiles):
                stem = WV_TILE if (state, split, number) == ("wv", "val", 0) else f"m_{number:07d}_{split}_17_1"
                grid = writer.grid(26917)
                labels, image, nlcd, classes = writer.scene([1, 6, 2, 3], COLOURS, [11, 23, 41, 81])
                base = f"{state}_1m_{year}_extended-debuffered-{split}_tiles/{stem}"
                layers = {
                    "naip-new": image,
                    "naip-old": image,
                    "landsat-leaf-on": np.repeat(image[:1], 9, axis=0),
                    "landsat-leaf-off": np.repeat(image[:1], 9, axis=0),
                    "nlcd": nlcd,
                    "lc": labels,
                    "buildings": classes == 1,
                }
                files = {name: writer.write(f"{base}_{name}.tif", values, grid) for name, values in layers.items()}
                writer.write(f"{base}_{ending}.tif", 255 * prior_from_arrays(nlcd, matrix), grid)
                writer.index(grid, f"{state}-{split}", **files)
    writer.close(root / "spatial_index.geojson")
    return root
