"""Small inputs with the names used on the pages, made when a command needs them."""

import gzip
import json
import re
import shutil
from functools import cached_property

import geopandas
import numpy as np
import rasterio
import shapely
from PIL import Image
from shapely.geometry import Point, box

from landprior.landcover.assessment.sampling import draw_sample, write_sample
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.synthetic.scene import make_scene
from landprior.landcover.training.files import train_files
from landprior.landcover.training.settings import TileSettings
from landprior.raster.cog import write_raster
from landprior.raster.scheme import MAP_NODATA, load_scheme
from landprior.resources import config_file

SIDE = 128
QUICK = {"filters": 2, "patch_size": 16, "batch_size": 2}
STEPS = {"steps": 4, "warmup_steps": 2}

# the kind of a file by its name; the first match counts
KINDS = (
    (r"worldcover\.tif", "worldcover"),
    (r"Annual_NLCD_.*\.tif", "national_nlcd"),
    (r"(.*_)?nlcd(_.*)?\.tif", "nlcd"),
    (r"(.*_)?(?P<layer>roads|buildings|waterways|waterbodies)\.tif", "layer"),
    (r"(.*_)?(labels|lc)\.tif", "labels"),
    (r"(.*_)?(prior|probabilities)\.tif", "prior"),
    (r"(.*_)?map\.tif", "map"),
    (r"(.*_)?(naip|image)\.tif", "image"),
    (r"(.*_)?model\.safetensors", "model"),
    (r"points\.csv", "points_table"),
    (r"points\.gpkg", "points"),
    (r"(mine|survey)\.gpkg", "labels_vector"),
    (r"parcels\.gpkg", "parcels"),
    (r"(county|parcels|outline)\.(geojson|gpkg)", "outline"),
    (r".*\.(osm\.pbf)", "osm"),
    (r"NewYork\.geojson", "footprints"),
    (r"\d{4}|quads", "naip_folder"),
    (r"mine\.yaml", "scheme"),
    (r"(photos|mnist)\.?(npz)?", "digits"),
    (r"sets\.csv", "candidates"),
    (r"pairs\.csv", "pairs"),
    (r"slides|new\.tif", "slides"),
    (r"(blocks|counts)\.csv", "blocks"),
    (r"nuclei\.csv", "nuclei"),
    (r"prior\.csv", "density_prior"),
    (r"doc(ument)?s\.(jsonl|csv\.gz)", "documents"),
    (r"(labels|topics)\.(json|yaml)", "topics"),
    (r"prior\.npz", "topic_prior"),
    (r"emb\.npz", "embeddings"),
    (r"field\.tif", "image"),
    (r"field\.geojson", "field_drawing"),
    (r"(wave|a|b|other|picture)\.jpg|rocket\.png", "picture"),
    (r"(wave-prior|a|b|drawing)\.png", "drawing"),
    (r"rocket\.geojson", "rocket_drawing"),
)


class Inputs:
    """Makes files; slow ones are made once.

    Parameters
    ----------
    folder
        Where files that are made once are kept.
    """

    def __init__(self, folder):
        self.folder = folder
        self.scene = make_scene(SIDE, seed=0)
        self.enviroatlas, self.chesapeake = load_scheme("enviroatlas-5"), load_scheme("chesapeake-4")

    def provide(self, path, scheme="enviroatlas-5"):
        """Make a file or folder, if its name is of a known kind."""
        for pattern, kind in KINDS:
            if re.fullmatch(pattern, path.name):
                path.parent.mkdir(parents=True, exist_ok=True)
                return getattr(self, f"make_{kind}")(path, scheme)
        return None

    # -- rasters ----------------------------------------------------------------------------------

    def make_image(self, path, _=None):
        write_raster(path, self.scene.image, self.scene.grid)

    def make_nlcd(self, path, _=None):
        write_raster(path, self.scene.nlcd.astype(np.uint8), self.scene.grid, overviews="nearest")

    def make_worldcover(self, path, _=None):
        codes = {11: 80, 21: 50, 22: 50, 23: 50, 24: 50, 31: 60, 41: 10, 42: 10, 43: 10, 52: 20, 71: 30, 90: 10, 95: 90}
        values = np.full(self.scene.nlcd.shape, 40, dtype=np.uint8)
        for code, other in codes.items():
            values[self.scene.nlcd == code] = other
        write_raster(path, values, self.scene.grid, overviews="nearest")

    def make_layer(self, path, _=None):
        name = next(name for name in self.scene.layers if path.stem.endswith(name))
        write_raster(path, self.scene.layers[name], self.scene.grid, overviews="nearest")

    def make_labels(self, path, scheme="enviroatlas-5"):
        write_raster(path, self.truth(scheme), self.scene.grid, nodata=MAP_NODATA, overviews="mode")

    def make_map(self, path, scheme="enviroatlas-5"):
        options = {"nodata": MAP_NODATA, "overviews": "mode", "scheme": load_scheme(scheme)}
        write_raster(path, np.roll(self.truth(scheme), 3, axis=1), self.scene.grid, **options)

    def truth(self, scheme):
        """Return the truth as codes of a scheme."""
        if scheme != "chesapeake-4":
            return self.scene.truth
        names = {"water": 1, "trees": 2, "grass": 3, "barren": 4, "impervious": 4}
        values = np.full(self.scene.truth.shape, MAP_NODATA, dtype=np.uint8)
        for one in self.enviroatlas.classes:
            values[self.scene.truth == one.code] = names[one.name]
        return values

    @cached_property
    def chain(self):
        """A folder with a prior and a model."""
        self.make_image(self.folder / "naip.tif")
        self.make_nlcd(self.folder / "nlcd.tif")
        matrix = load_cooccurrence(None, self.enviroatlas)
        build_prior(self.folder / "nlcd.tif", self.folder / "prior.tif", cooccurrence=matrix)
        settings = TileSettings(**QUICK, training=STEPS)
        pair = (self.folder / "naip.tif", self.folder / "prior.tif")
        train_files([pair], self.folder / "model.safetensors", settings=settings)
        return self.folder

    def make_prior(self, path, _=None):
        shutil.copy(self.chain / "prior.tif", path)

    def make_model(self, path, _=None):
        shutil.copy(self.chain / "model.safetensors", path)

    def make_tiles(self, city, scheme):
        """Make two tiles for a place in a workspace."""
        for name in ("one", "two"):
            (city / name).mkdir(parents=True)
            for layer in ("image", "nlcd", "labels"):
                getattr(self, f"make_{layer}")(city / name / f"{layer.replace('image', 'naip')}.tif", scheme)

    # -- vectors and tables of points -------------------------------------------------------------

    def make_points(self, path, _=None):
        self.make_map(path.with_name("sampled.tif"))
        points = draw_sample(path.with_name("sampled.tif"), self.enviroatlas, count=100, least=2)
        write_sample(points, path, self.enviroatlas)

    def interpret(self, path):
        """Give each point of a sample its class, like an interpreter, if no point has one."""
        points = geopandas.read_file(path)
        if "reference" in points and not points["reference"].notna().any():
            layer = geopandas.list_layers(path).name[0]
            points["reference"] = [
                self.class_at(point.x, point.y) for point in points.to_crs(self.scene.grid.crs).geometry
            ]
            points.to_file(path, layer=layer)

    def class_at(self, x, y):
        """Return the name of the true class at a place."""
        column, row = ~self.scene.grid.transform @ (x, y)
        code = self.scene.truth[int(row), int(column)]
        return next(one.name for one in self.enviroatlas.classes if one.code == code)

    def make_points_table(self, path, _=None):
        lines = ["x,y,class"]
        for row, col in np.random.default_rng(0).integers(0, SIDE, (60, 2)):
            x, y = self.scene.grid.transform @ (col + 0.5, row + 0.5)
            lines.append(f"{x},{y},{self.class_at(x, y)}")
        path.write_text("\n".join(lines) + "\n")

    def make_labels_vector(self, path, _=None):
        left, bottom, right, top = self.scene.grid.bounds
        shapes = [Point((left + right) / 2, (bottom + top) / 2), box(left + 5, bottom + 5, left + 25, bottom + 25)]
        frame = geopandas.GeoDataFrame({"class": ["trees", "grass"]}, geometry=shapes, crs=self.scene.grid.crs)
        frame.to_file(path, driver="GPKG")

    # -- a place to fetch -------------------------------------------------------------------------

    @cached_property
    def place(self):
        """The files of a place in the form in which its sources deliver them."""
        from tests.sources.place import write_scene_files

        (self.folder / "place").mkdir()
        return write_scene_files(self.folder / "place")

    def make_outline(self, path, _=None):
        left, bottom, right, top = self.place.scene.grid.bounds
        x, y = (left + right) / 2, (bottom + top) / 2
        frame = geopandas.GeoDataFrame(geometry=[box(x - 60, y - 60, x + 60, y + 60)], crs=self.place.scene.grid.crs)
        frame.to_crs(4326).to_file(path)

    def make_parcels(self, path, _=None):
        left, bottom, right, top = self.scene.grid.bounds
        halves = [box(left, bottom, left + 70, top), box(left + 70, bottom, right, top)]
        frame = geopandas.GeoDataFrame({"parcel_id": ["a", "b"]}, geometry=halves, crs=self.scene.grid.crs)
        frame.to_crs(4326).to_file(path)

    def make_national_nlcd(self, path, _=None):
        shutil.copy(self.place.nlcd, path)

    def make_osm(self, path, _=None):
        shutil.copy(self.place.pbf, path)

    def make_footprints(self, path, _=None):
        shapes = self.place.scene.vectors["buildings"]
        geopandas.GeoDataFrame(geometry=list(shapes), crs=self.place.scene.grid.crs).to_crs(4326).to_file(path)

    def make_naip_folder(self, path, _=None):
        shutil.copytree(self.place.image.parent, path)

    def make_scheme(self, path, _=None):
        shutil.copy(config_file("schemes") / "enviroatlas-5.yaml", path)

    # -- data of configurations --------------------------------------------------------------------

    def make_comparison(self, folder):
        """Make the tiles of docs/research/superres.md."""
        for tile in "abc":
            for kind in ("naip", "nlcd", "lc"):
                self.provide(folder / f"{tile}_{kind}.tif", "chesapeake-4")
        labels = np.where(self.truth("chesapeake-4") == 1, 10, self.truth("chesapeake-4")).astype(np.uint8)
        write_raster(folder / "c_lc.tif", labels, self.scene.grid, nodata=MAP_NODATA, overviews="mode", overwrite=True)
        shutil.copy(config_file("cooccurrence") / "chesapeake-4.csv", folder / "south.csv")

    def make_experiment(self, folder):
        """Make the data of docs/research/experiments.md."""
        for tile in ("easton-1", "easton-2", "easton-3", "weston-1"):
            for kind in ("naip", "nlcd", "roads", "labels"):
                self.provide(folder / tile / f"{kind}.tif")
            (folder / "theirs").mkdir(exist_ok=True)
            values = np.where(self.scene.truth == 10, 1, 2).astype(np.uint8)
            write_raster(folder / "theirs" / f"{tile}.tif", values, self.scene.grid, overviews="mode")
        (folder / "matrices").mkdir()
        shutil.copy(config_file("cooccurrence") / "enviroatlas-5.csv", folder / "matrices" / "weston.csv")

    # -- labelled images --------------------------------------------------------------------------

    def make_digits(self, path, _=None):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 60, (36, 28, 28)).astype(np.uint8)
        labels = np.arange(36) % 3
        for image, label in zip(images, labels, strict=True):
            image[5 * label : 5 * label + 8] += 150
        if path.suffix == ".npz":
            np.savez(path, x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
            return
        path.mkdir()
        lines = ["file,label,split"]
        for number, image in enumerate(images):
            Image.fromarray(image).save(path / f"{number}.png")
            lines.append(f"{number}.png,,train" if number < 30 else f"{number}.png,,test")
        (path / "labels.csv").write_text("\n".join(lines) + "\n")

    def make_candidates(self, path, _=None):
        names = ("cat", "dog", "fox")
        lines = ["file,candidates", *(f"{n}.png,{names[n % 3]}|{names[(n + 1) % 3]}" for n in range(30))]
        path.write_text("\n".join(lines) + "\n")

    def make_pairs(self, path, _=None):
        lines = ["first,second,relation", *(f"{n + 1}.png,{n}.png,>=" for n in range(29) if n % 3 != 2)]
        path.write_text("\n".join(lines) + "\n")

    # -- densities --------------------------------------------------------------------------------

    def make_slides(self, path, _=None):
        rng = np.random.default_rng(0)
        for name in ("one", "two", "three") if not path.suffix else (path.stem,):
            file = path if path.suffix else path / f"{name}.tif"
            file.parent.mkdir(exist_ok=True)
            with rasterio.open(file, "w", driver="GTiff", height=200, width=200, count=3, dtype="uint8") as dst:
                dst.write(rng.integers(150, 255, (3, 200, 200), dtype=np.uint8))

    def make_blocks(self, path, _=None):
        names, rng = ("one", "two", "three"), np.random.default_rng(0)
        column = "class" if path.stem == "blocks" else "count"
        lines = [f"image,row,col,{column}"]
        lines += [f"{name},{row},{col},{int(rng.integers(10))}" for name in names for row in (0, 1) for col in (0, 1)]
        path.write_text("\n".join(lines) + "\n")

    def make_nuclei(self, path, _=None):
        rng = np.random.default_rng(0)
        kinds = ("inflammatory", "other", "unlabelled") * 4
        places = [(name, *rng.uniform(0, 200, 2), kind) for name in ("one", "two") for kind in kinds]
        lines = ["image,x,y,type", *(f"{name},{x},{y},{kind}" for name, x, y, kind in places)]
        path.write_text("\n".join(lines) + "\n")

    def make_density_prior(self, path, _=None):
        path.write_text("class,probability\n" + "".join(f"{k},{0.05 + k / 10}\n" for k in range(10)))

    # -- documents --------------------------------------------------------------------------------

    TOPICS = {"sports": ["hockey", "tennis"], "arts": ["dance", "music"]}  # noqa: RUF012 - never modified

    def rows(self):
        """Return documents: identifier, text, coarse label and fine label."""
        fine = [(coarse, name) for coarse, names in self.TOPICS.items() for name in names]
        return [(str(n), f"a text of {fine[n % 4][1]} and more", *fine[n % 4]) for n in range(24)]

    def make_documents(self, path, _=None):
        names = ("id", "text", "coarse", "fine")
        if path.suffix == ".gz":
            lines = [",".join(names), *(",".join(row) for row in self.rows())]
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
        else:
            path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in self.rows()))

    def make_topics(self, path, _=None):
        path.write_text(json.dumps(self.TOPICS))  # also valid YAML

    def make_topic_prior(self, path, _=None):
        fine = [name for names in self.TOPICS.values() for name in names]
        prior = np.array([[0.7 if name == row[3] else 0.1 for name in fine] for row in self.rows()])
        np.savez(path, prior=prior, fine=np.array(fine), ids=np.array([row[0] for row in self.rows()]))

    def make_embeddings(self, path, _=None):
        fine = [name for names in self.TOPICS.values() for name in names]
        cosine = np.array([[0.5 if name == row[3] else 0.1 for name in fine] for row in self.rows()])
        np.savez(path, cosine=cosine, fine=np.array(fine), ids=np.array([row[0] for row in self.rows()]))

    # -- pictures ---------------------------------------------------------------------------------

    def make_picture(self, path, _=None):
        height, width = (427, 640) if path.stem == "rocket" else (64, 64)
        values = np.random.default_rng(0).integers(0, 90, (height, width, 3)).astype(np.uint8)
        values[: height // 2, :, 2] += 150
        Image.fromarray(values).save(path)

    def make_drawing(self, path, _=None):
        values = np.zeros((64, 64, 3), dtype=np.uint8)
        values[:36, :, 0] = 255
        values[28:, :, 2] = 255
        Image.fromarray(values).save(path)

    def make_field_drawing(self, path, _=None):
        left, bottom, right, top = self.scene.grid.bounds
        middle = (left + right) / 2
        shapes = [box(left, bottom, middle + 10, top), box(middle - 10, bottom, right, top)]
        frame = geopandas.GeoDataFrame({"class": ["crop", "weeds"]}, geometry=shapes, crs=self.scene.grid.crs)
        frame.to_crs(4326).to_file(path)

    def make_rocket_drawing(self, path, _=None):
        parts = {"sky": box(0, 0, 640, 380), "tower": box(165, 120, 210, 427), "ground": box(0, 380, 640, 427)}
        features = [
            {"type": "Feature", "properties": {"class": name}, "geometry": shapely.geometry.mapping(shape)}
            for name, shape in parts.items()
        ]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
