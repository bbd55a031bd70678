"""Damages input files, runs commands on them, and reports outcomes other than a result or a one-line error.

    python tests/damage.py --count 5000 --seed 1 [--jobs 2] [--only nlcd]

Everything is seeded: ``--first N --count 1`` with the same seed repeats case number N. Each worker is a separate
process, so that a crash or a hang is a single finding and the others go on.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECONDS = 90
"""Seconds after which a case counts as hanging."""

_WORDS = r"""
nan NaN -inf Infinity 1e999 -1 0 1.5 255 256 99999999999999999999 1e-400 null true [] {}
"" '' , : ; | = ../x /etc/x é 森
2,5 0x10 1_000 no 010 1:30 *a &a !!python/object:os.system <a> \ "\ud800" %s {tile} -- NULL [[[[ }}}} POINT
"""
TOKENS = (*_WORDS.split(), "\x00", "\ufeff")


@dataclass(frozen=True)
class Case:
    """A command, and which of its files is damaged."""

    name: str
    file: str
    args: str
    text: bool = False
    slow: bool = False
    """Takes more than a fraction of a second, and is chosen less often."""


RUN = "--scheme enviroatlas-5"
TRAIN = "--steps 2 --filters 2 --patch-size 16 --batch-size 2"
SOURCES = "--bbox=BOX --name place --data w --offline --naip naip --nlcd nlcd.tif"
PAINT = (
    "paint picture.png --prior drawn.png --class water=blue --class trees=lime --set white=water|trees "
    "--steps 1 --filters 2"
)
CASES = (
    Case("image", "image.tif", "predict image.tif --model model.safetensors -o out.tif"),
    Case(
        "image of train",
        "image.tif",
        f"train --image image.tif --prior prior.tif {TRAIN} -o out.safetensors",
        slow=True,
    ),
    Case("image plain", "plain.tif", "predict plain.tif --model model.safetensors -o out.tif --force"),
    Case(
        "image of cluster",
        "image.tif",
        "cluster image.tif -k 3 --steps 2 --filters 2 --near 3 --far 5 -o out.tif",
        slow=True,
    ),
    Case("nlcd", "nlcd.tif", f"build-prior --nlcd nlcd.tif {RUN} -o out.tif"),
    Case("nlcd warped", "albers.tif", f"build-prior --nlcd albers.tif --like image.tif {RUN} -o out.tif"),
    Case("nlcd plain", "nlcd_plain.tif", f"build-prior --nlcd nlcd_plain.tif {RUN} -o out.tif"),
    Case("roads", "roads.tif", f"build-prior --nlcd nlcd.tif --roads roads.tif {RUN} -o out.tif"),
    Case("prior", "prior.tif", "predict image.tif --model model.safetensors --posterior prior.tif -o out.tif --force"),
    Case(
        "prior of train",
        "prior.tif",
        f"train --image image.tif --prior prior.tif {TRAIN} -o out.safetensors",
        slow=True,
    ),
    Case("labels", "labels.tif", "evaluate map.tif labels.tif"),
    Case("labels of a matrix", "labels.tif", f"cooccurrence nlcd.tif labels.tif {RUN} -o out.csv"),
    Case("map", "map.tif", "evaluate map.tif labels.tif"),
    Case("map of sample", "map.tif", "sample map.tif --count 12 -o out.gpkg"),
    Case("map of zonal", "map.tif", "zonal map.tif parcels.gpkg -o out.gpkg"),
    Case(
        "probabilities of zonal", "unsure_probabilities.tif", "zonal unsure_probabilities.tif parcels.gpkg -o out.csv"
    ),
    Case("polygons", "parcels.gpkg", "zonal map.tif parcels.gpkg --id number -o out.gpkg"),
    Case("polygons geojson", "parcels.geojson", "zonal map.tif parcels.geojson -o out.parquet", text=True),
    Case("polygons shp", "parcels.shp", "zonal map.tif parcels.shp --points points.gpkg -o out.gpkg"),
    Case("points of zonal", "points.gpkg", "zonal map.tif parcels.gpkg --points points.gpkg -o out.csv"),
    Case("sidecar", "image.tif.aux.xml", "predict image.tif --model model.safetensors -o out.tif", text=True),
    Case("model", "model.safetensors", "predict image.tif --model model.safetensors -o out.tif"),
    Case(
        "adapted model",
        "adapted.safetensors",
        "predict image.tif --model adapted.safetensors --posterior prior.tif -o out.tif",
    ),
    Case(
        "points of adapt",
        "points.gpkg",
        "adapt --model model.safetensors --image image.tif --prior prior.tif --points points.gpkg -o out.safetensors",
    ),
    Case("map of polygons", "map.tif", "polygons map.tif -o out.gpkg"),
    Case("map of sieve", "map.tif", "sieve map.tif --minimum-area 4 -o out.tif"),
    Case("unsure map", "unsure_probabilities.tif", "sample unsure.tif --for adapt --count 4 -o out.gpkg"),
    Case(
        "checkpoint", "CHECKPOINT", f"train --image image.tif --prior prior.tif {TRAIN} -o out.safetensors", slow=True
    ),
    Case("points gpkg", "points.gpkg", "evaluate map.tif points.gpkg"),
    Case("points geojson", "points.geojson", "evaluate map.tif points.geojson", text=True),
    Case("points shp", "points.shp", "evaluate map.tif points.shp --class-column reference"),
    Case("points dbf", "points.dbf", "evaluate map.tif points.shp --class-column reference"),
    Case("points zip", "points.zip", "evaluate map.tif points.zip --class-column reference"),
    Case("points fgb", "points.fgb", "evaluate map.tif points.fgb"),
    Case("points parquet", "points.parquet", "evaluate map.tif points.parquet"),
    Case("hints", "hints.geojson", f"build-prior --nlcd nlcd.tif --points hints.geojson {RUN} -o out.tif", text=True),
    Case(
        "hints gpkg",
        "points.gpkg",
        f"build-prior --nlcd nlcd.tif --points points.gpkg --class-column reference {RUN} -o out.tif",
    ),
    Case(
        "exclusion",
        "hints.geojson",
        "evaluate map.tif labels.tif --exclude hints.geojson --exclude-buffer 3",
        text=True,
    ),
    Case("points csv", "points.csv", f"assign clusters.tif --points points.csv {RUN} --draws 0 -o out.tif", text=True),
    Case("clusters", "clusters.tif", f"assign clusters.tif --points points.csv {RUN} --draws 0 -o out.tif"),
    Case(
        "matrix csv", "matrix.csv", f"build-prior --nlcd nlcd.tif --cooccurrence matrix.csv {RUN} -o out.tif", text=True
    ),
    Case("matrix npy", "matrix.npy", f"build-prior --nlcd nlcd.tif --cooccurrence matrix.npy {RUN} -o out.tif"),
    Case(
        "scheme",
        "scheme.yaml",
        "build-prior --nlcd nlcd.tif --cooccurrence matrix.csv --scheme scheme.yaml -o out.tif",
        text=True,
    ),
    Case("plan status", "plan.json", "status plan.json", text=True),
    Case("plan mosaic", "plan.json", "mosaic plan.json --partial -o out.tif", text=True),
    Case("plan with points", "adapted.json", "status adapted.json", text=True),
    Case("adaptation", "adapted/town/adaptation.json", "status adapted.json", text=True),
    Case("adaptation of run", "adapted/town/adaptation.json", "run adapted.json", text=True, slow=True),
    Case("item mosaic", "town/town/t1/item.json", "mosaic plan.json -o out.tif", text=True),
    Case("item prior", "town/town/t1/item.json", f"build-prior --city town --data town {RUN}", text=True),
    Case("tile map", "town/town/t1/prediction.tif", "mosaic plan.json -o out.tif"),
    Case(
        "preset",
        "preset.yaml",
        f"fetch --city preset.yaml {SOURCES.partition('--name place ')[2]} --osm none --buildings none --dry-run",
        text=True,
    ),
    Case("experiment", "experiment.yaml", "experiment experiment.yaml --root . --dry-run -o out", text=True),
    Case("comparison", "compare.yaml", "compare compare.yaml --dry-run -o out", text=True),
    Case(
        "outline",
        "outline.geojson",
        f"fetch --aoi outline.geojson {SOURCES.partition('BOX ')[2]} --osm none --buildings none --dry-run",
        text=True,
    ),
    Case(
        "naip of fetch",
        "naip/m_4007934_nw_17_1_20140620.tif",
        f"fetch {SOURCES} --osm none --buildings none",
        slow=True,
    ),
    Case("nlcd of fetch", "nlcd.tif", f"fetch {SOURCES} --osm none --buildings none", slow=True),
    Case("osm xml", "place.osm", f"fetch {SOURCES} --osm place.osm --buildings none", text=True, slow=True),
    Case("osm pbf", "place.osm.pbf", f"fetch {SOURCES} --osm place.osm.pbf --buildings none", slow=True),
    Case("osm gpkg", "osm.gpkg", f"fetch {SOURCES} --osm osm.gpkg --buildings none", slow=True),
    Case("buildings fgb", "buildings.fgb", f"fetch {SOURCES} --osm none --buildings buildings.fgb", slow=True),
    Case(
        "buildings parquet", "buildings.parquet", f"fetch {SOURCES} --osm none --buildings buildings.parquet", slow=True
    ),
    Case(
        "buildings geojson",
        "buildings.geojson",
        f"fetch {SOURCES} --osm none --buildings buildings.geojson",
        text=True,
        slow=True,
    ),
    Case("npz", "images.npz", "partial-labels images.npz --epochs 1 --filters 2 -o out", slow=True),
    Case("idx", "idx/train-images-idx3-ubyte", "rank idx --epochs 1 --filters 2 --draw 8 -o out", slow=True),
    Case(
        "candidates",
        "candidates.csv",
        "partial-labels images.npz --candidates candidates.csv --epochs 1 --filters 2 -o out",
        text=True,
        slow=True,
    ),
    Case("pairs", "pairs.csv", "rank images.npz --pairs pairs.csv --epochs 1 --filters 2 -o out", text=True, slow=True),
    Case(
        "documents",
        "docs.jsonl",
        "text docs.jsonl --tree tree.json --prior text_prior.csv --epochs 1 -o out.csv",
        text=True,
        slow=True,
    ),
    Case(
        "documents csv",
        "docs.csv",
        "text docs.csv --tree tree.json --prior text_prior.csv --epochs 1 -o out.csv",
        text=True,
        slow=True,
    ),
    Case(
        "tree",
        "tree.json",
        "text docs.jsonl --tree tree.json --prior text_prior.csv --epochs 1 -o out.csv",
        text=True,
        slow=True,
    ),
    Case(
        "text prior",
        "text_prior.csv",
        "text docs.jsonl --tree tree.json --prior text_prior.csv --epochs 1 -o out.csv",
        text=True,
        slow=True,
    ),
    Case(
        "text prior npz",
        "text_prior.npz",
        "text docs.jsonl --tree tree.json --prior text_prior.npz --epochs 1 -o out.csv",
        slow=True,
    ),
    Case(
        "outlines",
        "drawn.geojson",
        "paint image.tif --prior drawn.geojson --class water=blue --class trees=green --steps 1 --filters 2 -o out",
        text=True,
        slow=True,
    ),
    Case(
        "drawing",
        "drawn.png",
        f"{PAINT} -o out",
        slow=True,
    ),
    Case(
        "picture",
        "picture.png",
        f"{PAINT} -o out",
        slow=True,
    ),
    Case(
        "blocks",
        "blocks.csv",
        "density picture.png --coarse blocks.csv --block 16 --steps 1 --filters 2 --warmup none --no-maps -o out",
        text=True,
        slow=True,
    ),
)


# -- damage ------------------------------------------------------------------------------------------


def damage(content: bytes, rng: np.random.Generator, *, text: bool) -> tuple[bytes, str]:
    """Return a file's content, damaged, and the kind of damage."""
    kinds = ["bits", "header", "end", "truncate", "zeros", "swap", "insert", "repeat", "empty", "noise"]
    weights = [5, 8, 3, 4, 3, 3, 2, 1, 0.2, 0.5]
    if text:
        kinds += ["token", "line", "number", "encoding", "span"]
        weights = [weight / 3 for weight in weights] + [8, 3, 8, 3, 3]
    kind = str(rng.choice(kinds, p=np.array(weights) / sum(weights)))
    return globals()[f"_{kind}"](content, rng), kind


def _bits(content, rng, low=0, high=None):
    values = np.frombuffer(content, np.uint8).copy()
    high = len(values) if high is None else min(high, len(values))
    if high > low:
        at = rng.integers(low, high, rng.integers(1, 9))
        values[at] ^= (1 << rng.integers(0, 8, len(at))).astype(np.uint8)
    return values.tobytes()


def _header(content, rng):
    if rng.random() < 0.5:
        return _bits(content, rng, 0, int(rng.choice([32, 128, 512, 2048])))
    at = int(rng.integers(0, min(len(content), 1024) or 1))
    return content[:at] + rng.bytes(int(rng.choice([1, 2, 4, 8]))) + content[at + int(rng.choice([1, 2, 4, 8])) :]


def _end(content, rng):
    return _bits(content, rng, max(0, len(content) - int(rng.choice([32, 256, 1024]))))


def _truncate(content, rng):
    return content[: int(rng.integers(0, len(content) or 1))]


def _span_of(content, rng):
    start = int(rng.integers(0, len(content) or 1))
    return start, min(len(content), start + int(rng.choice([1, 4, 16, 64, 512])))


def _zeros(content, rng):
    start, stop = _span_of(content, rng)
    return content[:start] + bytes([int(rng.choice([0, 255]))]) * (stop - start) + content[stop:]


def _swap(content, rng):
    size = int(rng.choice([4, 16, 64, 256]))
    one, two = sorted(rng.integers(0, max(len(content) - size, 1), 2).tolist())
    if two < one + size:
        return content[two:] + content[:two]
    return (
        content[:one]
        + content[two : two + size]
        + content[one + size : two]
        + content[one : one + size]
        + content[two + size :]
    )


def _insert(content, rng):
    at = int(rng.integers(0, len(content) + 1))
    return content[:at] + rng.bytes(int(rng.choice([1, 4, 64]))) + content[at:]


def _repeat(content, rng):
    start, stop = _span_of(content, rng)
    return content[:stop] + content[start:stop] * int(rng.choice([1, 3, 50])) + content[stop:]


def _empty(content, rng):  # noqa: ARG001 - the same signature as the others
    return b""


def _noise(content, rng):
    return rng.bytes(int(rng.choice([1, 100, len(content)])))


def _token(content, rng):
    spans = [m.span() for m in re.finditer(rb"[\w.+-]+|[^\w\s]", content)] or [(0, len(content))]
    start, stop = spans[rng.integers(len(spans))]
    return content[:start] + str(rng.choice(TOKENS)).encode("utf-8", "surrogatepass") + content[stop:]


def _number(content, rng):
    spans = [m.span() for m in re.finditer(rb"-?\d+(\.\d+)?", content)] or [(0, 0)]
    start, stop = spans[rng.integers(len(spans))]
    return (
        content[:start] + str(rng.choice([*TOKENS[:12], content[start:stop].decode() + "00"])).encode() + content[stop:]
    )


def _line(content, rng):
    lines = content.splitlines(keepends=True)
    if not lines:
        return b""
    at = int(rng.integers(len(lines)))
    change = rng.integers(3)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(int(rng.integers(len(lines))), lines[at])
    else:
        lines[at] = lines[int(rng.integers(len(lines)))]
    return b"".join(lines)


def _span(content, rng):
    start, stop = _span_of(content, rng)
    return content[:start] + content[stop:]


def _encoding(content, rng):
    text = content.decode("utf-8", "replace")
    way = rng.integers(6)
    if way == 0:
        return text.encode("utf-16")
    if way == 1:
        return b"\xef\xbb\xbf" + content
    if way == 2:
        return text.replace("a", "é").encode("latin-1", "replace")
    if way == 3:
        return text.replace("\n", "\r\n").encode()
    if way == 4:
        return text.replace("\n", "\r").encode()
    return content.replace(b"e", b"\xff\xfe", 1)


# -- good files --------------------------------------------------------------------------------------


def build(folder: Path) -> None:  # noqa: PLR0915 - a list of files
    """Write one small undamaged file of each kind."""
    import geopandas
    import osmium
    import rasterio
    import shapely
    from affine import Affine
    from PIL import Image
    from rasterio.crs import CRS

    from landprior.landcover.assessment.sampling import draw_sample, write_sample
    from landprior.landcover.prior.cooccurrence import load_cooccurrence, write_cooccurrence
    from landprior.landcover.training import files as training
    from landprior.landcover.workspace.item import TileFolder
    from landprior.raster.cog import write_raster
    from landprior.raster.grid import Bounds, Grid
    from landprior.raster.scheme import load_scheme

    os.chdir(folder)
    os.environ["LANDPRIOR_CACHE"] = str(folder / "cache")
    rng = np.random.default_rng(7)
    scheme = load_scheme("enviroatlas-5")
    utm = CRS.from_epsg(26917)
    left, top, side = 600_000.0, 4_500_000.0, 48
    grid = Grid(width=side, height=side, transform=Affine(1, 0, left, 0, -1, top), crs=utm)
    fields = rng.integers(0, 4, (6, 6)).repeat(8, 0).repeat(8, 1)
    image = (np.choose(fields, (30, 90, 150, 210)) + rng.normal(0, 8, (4, side, side))).clip(1, 255).astype(np.uint8)
    codes = np.choose(fields, (10, 20, 40, 70)).astype(np.uint8)
    nlcd = np.choose(np.kron(rng.integers(0, 4, (2, 2)), np.ones((24, 24), int)), (11, 24, 41, 82)).astype(np.uint8)
    write_raster("image.tif", image, grid)
    write_raster("nlcd.tif", nlcd, grid, nodata=0)
    write_raster("roads.tif", (fields == 1).astype(np.uint8), grid)
    write_raster("labels.tif", codes, grid, nodata=255, scheme=scheme)
    write_raster("map.tif", codes, grid, nodata=255, scheme=scheme)
    for name, values in (("plain.tif", image), ("nlcd_plain.tif", nlcd[None])):
        with rasterio.open(
            name, "w", driver="GTiff", width=side, height=side, count=len(values), dtype="uint8", crs=utm, nodata=0,
            transform=grid.transform,
        ) as dst:  # fmt: skip
            dst.write(values)
            dst.update_tags(AREA_OR_POINT="Area", about="été")
            dst.set_band_description(1, "naïve")
    wide = Grid(width=12, height=12, transform=Affine(30, 0, 1_399_000, 0, -30, 2_100_000), crs=CRS.from_epsg(5070))
    xs, ys = rasterio.warp.transform(utm, wide.crs, [left + 24], [top - 24])
    wide = Grid(width=12, height=12, transform=Affine(30, 0, xs[0] - 180, 0, -30, ys[0] + 180), crs=wide.crs)
    write_raster("albers.tif", rng.choice([11, 24, 41, 82], (12, 12)).astype(np.uint8), wide, nodata=0)
    Path("image.tif.aux.xml").write_text(
        '<PAMDataset>\n  <Metadata>\n    <MDI key="about">x</MDI>\n  </Metadata>\n  <PAMRasterBand band="1">\n'
        '    <Description>red</Description>\n    <Metadata>\n      <MDI key="STATISTICS_MAXIMUM">255</MDI>\n'
        "    </Metadata>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
    _good(f"build-prior --nlcd nlcd.tif {RUN} -o prior.tif")
    _good(f"train --image image.tif --prior prior.tif {TRAIN} -o model.safetensors")
    kept = training.clear_checkpoint
    import landprior.cli.train as command

    patched = [module for module in (training, command) if hasattr(module, "clear_checkpoint")]
    for module in patched:
        module.clear_checkpoint = lambda _: None
    before = set(folder.iterdir())
    _good(f"train --image image.tif --prior prior.tif {TRAIN} -o out.safetensors")
    for module in patched:
        module.clear_checkpoint = kept
    (checkpoint,) = [p for p in set(folder.iterdir()) - before if p.name != "out.safetensors"] or [
        Path("model.safetensors")
    ]
    Path("CHECKPOINT").write_text(checkpoint.name)
    Path("out.safetensors").unlink()
    _good("cluster image.tif -k 3 --steps 2 --filters 2 --near 3 --far 5 -o clusters.tif")
    sample = draw_sample("map.tif", scheme, count=24)
    sample["reference"] = [scheme.names[scheme.index(int(code))] for code in sample["stratum"]]
    write_sample(sample, "points.gpkg", scheme)
    files = "--image image.tif --prior prior.tif --points points.gpkg"
    _good(f"adapt --model model.safetensors {files} -o adapted.safetensors")
    _good("predict image.tif --model adapted.safetensors --posterior prior.tif --probabilities -o unsure.tif")
    sample.to_crs(4326).to_file("points.geojson")
    sample.to_file("points.fgb", driver="FlatGeobuf")
    sample.to_parquet("points.parquet")
    small = sample[["id", "reference", "geometry"]]
    small.to_file("points.shp")
    _zip("points")
    lines = [
        f"{int(y)},{int(x)},{c}"
        for x, y, c in zip(sample.geometry.x - left, top - sample.geometry.y, sample.reference, strict=True)
    ]
    Path("points.csv").write_text("row,col,class\n" + "\n".join(lines) + "\n")
    boxes = [shapely.box(left + 3 + 12 * i, top - 20, left + 10 + 12 * i, top - 8) for i in range(3)]
    frame = geopandas.GeoDataFrame({"class": ["trees", "water", "trees|grass"]}, geometry=boxes, crs=26917)
    frame.to_crs(4326).to_file("hints.geojson")
    frame.iloc[:2].to_crs(4326).to_file("drawn.geojson")
    parcels = geopandas.GeoDataFrame({"number": range(3)}, geometry=boxes, crs=26917)
    for name in ("parcels.gpkg", "parcels.shp"):
        parcels.to_file(name)
    parcels.to_crs(4326).to_file("parcels.geojson")
    frame[["geometry"]].to_file("buildings.fgb", driver="FlatGeobuf")
    frame[["geometry"]].to_crs(4326).to_file("buildings.geojson")
    frame[["geometry"]].to_parquet("buildings.parquet")
    outline = geopandas.GeoSeries([shapely.box(left + 12, top - 36, left + 36, top - 12)], crs=26917).to_crs(4326)
    outline.to_file("outline.geojson")
    Path("BOX").write_text(",".join(f"{value:.7f}" for value in outline.total_bounds))
    write_cooccurrence(load_cooccurrence(None, scheme), "matrix.csv")
    table = np.zeros((256, len(scheme)))
    for code, row in load_cooccurrence(None, scheme).probabilities.items():
        table[code] = row
    np.save("matrix.npy", table)
    Path("scheme.yaml").write_text(
        "name: mine\ntitle: Mine\nclasses:\n"
        + "".join(
            f"  - {{code: {c.code}, name: {c.name}, colour: '{c.colour}'{f', role: {c.role}' if c.role else ''}}}\n"
            for c in scheme.classes
        )
    )
    for number in (1, 2):
        tile = TileFolder(path=Path("town/town") / f"t{number}", city="town")
        tile.path.mkdir(parents=True)
        place = Grid(width=side, height=side, transform=Affine(1, 0, left + side * (number - 1), 0, -1, top), crs=utm)
        write_raster(tile.file("naip"), image, place)
        write_raster(tile.file("nlcd"), nlcd, place, nodata=0)
        tile.record("naip", "key", core=Bounds(*place.bounds))
    _good(f"plan --city town --data town {RUN} --steps 2 --filters 2 -o plan.json")
    shutil.copytree("town", "adapted")
    _good("run plan.json")
    _good(f"plan --city town --data adapted {RUN} --steps 2 --filters 2 --points points.gpkg -o adapted.json")
    _good("run adapted.json")
    Path("preset.yaml").write_text(
        f"name: place\ntitle: Place\nbounds: [{Path('BOX').read_text()}]\nnaip_year: 2014\n"
        "nlcd_year: 2016\nepsg: 26917\n"
        "scheme: enviroatlas-5\n"
    )
    Path("experiment.yaml").write_text(
        "title: Mine\nabout: A test\nscheme: enviroatlas-5\ndata:\n  kind: files\n  layers:\n    image: image.tif\n"
        "    nlcd: nlcd.tif\n    labels: labels.tif\nregions:\n  here: {title: Here, splits: {test: [a, b]}}\n"
        "settings: {recipe: default, filters: 2}\nmodes: [tile]\nseeds: 1\nrows:\n"
        "  - {name: prior, method: prior, prior: nlcd}\n  - {name: QR, method: weak, loss: qr, prior: nlcd}\n"
    )
    Path("compare.yaml").write_text(
        "scheme: enviroatlas-5\nfiles: {image: image.tif, nlcd: nlcd.tif, labels: labels.tif}\nplaces: {north: [a]}\n"
        "methods:\n  - prior\n  - qr\n  - {method: sr, name: sr l1, options: {criterion: l1}}\nseeds: 1\n"
        "settings: {steps: 2, filters: 2, patch_size: 16, batch_size: 2}\n"
    )
    Path("naip").mkdir()
    shutil.copy("image.tif", "naip/m_4007934_nw_17_1_20140620.tif")
    corners = geopandas.GeoSeries.from_xy(
        [left + 5, left + 40, left + 20], [top - 5, top - 30, top - 44], crs=26917
    ).to_crs(4326)
    writer_of = osmium.SimpleWriter
    for name in ("place.osm.pbf", "place.osm"):
        with writer_of(name) as writer:
            for number, point in enumerate(corners, start=1):
                writer.add_node(osmium.osm.mutable.Node(id=number, location=(point.x, point.y), version=1))
            writer.add_way(
                osmium.osm.mutable.Way(id=1, nodes=[1, 2], tags={"highway": "residential", "width": "6"}, version=1)
            )
            writer.add_way(osmium.osm.mutable.Way(id=2, nodes=[2, 3, 1, 2], tags={"natural": "water"}, version=1))
    road = geopandas.GeoDataFrame(
        {"highway": ["residential"], "other_tags": ['"lanes"=>"2"']},
        geometry=[shapely.LineString(list(corners)[:2])],
        crs=4326,
    )
    road.to_file("osm.gpkg", layer="lines")
    x, y = rng.integers(0, 255, (24, 8, 8)).astype(np.uint8), np.arange(24) % 3
    np.savez("images.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    Path("candidates.csv").write_text("item,candidates\n" + "".join(f"{i},{i % 3}|{(i + 1) % 3}\n" for i in range(24)))
    Path("pairs.csv").write_text("first,second\n" + "".join(f"{i + 2},{i}\n" for i in range(20)))
    Path("idx").mkdir()
    for split, count in (("train", 24), ("t10k", 6)):
        head = b"".join(n.to_bytes(4, "big") for n in (count, 8, 8))
        Path(f"idx/{split}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + head + x[:count].tobytes())
        Path(f"idx/{split}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + count.to_bytes(4, "big") + y[:count].astype(np.uint8).tobytes()
        )
    words = {
        "hockey": "ice puck goal",
        "tennis": "ball net serve",
        "dance": "step stage tango",
        "music": "song band tune",
    }
    coarse = {"hockey": "sports", "tennis": "sports", "dance": "arts", "music": "arts"}
    rows = [
        {"id": f"d{i}{f}", "text": f"{w} {i}", "coarse": coarse[f], "fine": f}
        for i in range(4)
        for f, w in words.items()
    ]
    Path("docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("docs.csv").write_text("id,text,coarse,fine\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    Path("tree.json").write_text(json.dumps({"sports": ["hockey", "tennis"], "arts": ["dance", "music"]}))
    good = [[0.6 if f == row["fine"] else 0.2 for f in words] for row in rows]
    Path("text_prior.csv").write_text(
        "id,"
        + ",".join(words)
        + "\n"
        + "".join(f"{r['id']}," + ",".join(map(str, p)) + "\n" for r, p in zip(rows, good, strict=True))
    )
    np.savez("text_prior.npz", prior=np.array(good), fine=list(words), ids=[row["id"] for row in rows])
    Image.fromarray(image[:3].transpose(1, 2, 0)).save("picture.png")
    drawn = np.full((side, side, 3), 255, np.uint8)
    drawn[:20], drawn[30:] = (0, 0, 255), (0, 255, 0)
    Image.fromarray(drawn).save("drawn.png")
    Path("blocks.csv").write_text(
        "image,row,col,class\n" + "".join(f"picture,{i},{j},{(i + j) % 3}\n" for i in range(3) for j in range(3))
    )


def _zip(stem: str) -> None:
    import zipfile

    with zipfile.ZipFile(f"{stem}.zip", "w") as archive:
        for suffix in ("shp", "shx", "dbf", "prj"):
            archive.write(f"{stem}.{suffix}")


def _good(line: str) -> None:
    found = invoke(line.split())
    if found.code != 0:
        message = f"{line}: {found.text}"
        raise RuntimeError(message)


# -- running -----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Exit code and messages of a command."""

    code: int
    text: str


def invoke(args: list[str]) -> Outcome:
    """Run a command in this process; the text has everything written to stderr, including output from C."""
    from click.testing import CliRunner

    from landprior.cli import main

    os.environ["LANDPRIOR_DEBUG"] = "1"
    with tempfile.TemporaryFile() as errors:
        saved = os.dup(2)
        os.dup2(errors.fileno(), 2)
        noted: list[str] = []
        hook, sys.unraisablehook = (
            sys.unraisablehook,
            lambda note: noted.append(f"Exception ignored: {note.exc_value!r}"),
        )
        try:
            result = CliRunner().invoke(main, args, prog_name="landprior")
        finally:
            sys.unraisablehook = hook
            os.dup2(saved, 2)
            os.close(saved)
        errors.seek(0)
        below = errors.read().decode(errors="replace")
    text = result.stderr + below + "".join(f"\n{note}" for note in noted)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        import traceback

        text += "\n" + "".join(traceback.format_exception(result.exception))
    return Outcome(code=result.exit_code, text=text)


def judge(found: Outcome, folder: Path, before: set[str]) -> str | None:  # noqa: PLR0911 - a list of possible problems
    """Return a description of the problem with an outcome, or None."""
    lines = [line for line in found.text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error:")]
    after = {str(path.relative_to(folder)) for path in folder.rglob("*")} - before
    hidden = [name for name in after if Path(name).name.startswith((".out", ".tmp"))]
    if "Traceback" in found.text:
        return "traceback"
    if "Exception ignored" in found.text:
        return "unraisable"
    if "unexpected error" in found.text:
        return "unexpected error"
    if found.code not in (0, 1, 2):
        return f"exit code {found.code}"
    if (len(errors) != 1) is (found.code != 0):
        return f"{len(errors)} error lines with exit code {found.code}"
    strange = [line for line in lines if re.match(r"(ERROR \d|Warning \d|TIFF\w+:|\w+Warning:|.*\.py:\d+: )", line)]
    if strange:
        return f"another library's words: {strange[0][:80]}"
    outputs = [name for name in ("out.tif", "out.gpkg", "out.csv", "out.safetensors") if name in after]
    if found.code and outputs:
        return f"left {outputs[0]}"
    if hidden and not any("checkpoint" in name for name in hidden):
        return f"left {hidden[0]}"
    if not found.code and "out.tif" in outputs:
        import rasterio

        with rasterio.open(folder / "out.tif") as src:
            src.read()
    return None


def choose(number: int, seed: int, only: str) -> tuple[Case, np.random.Generator]:
    """Return the case with a number, and the random generator for its damage."""
    rng = np.random.default_rng([seed, number])
    cases = [case for case in CASES if case.name == only] or [case for case in CASES if only in case.name]
    weights = np.array([0.15 if case.slow else 1.0 for case in cases])
    return cases[rng.choice(len(cases), p=weights / weights.sum())], rng


def run_case(number: int, seed: int, base: Path, only: str = "", *, unharmed: bool = False) -> dict[str, object]:
    """Damage a file, run its command in a separate folder, and judge the outcome."""
    case, rng = choose(number, seed, only)
    file = (base / "CHECKPOINT").read_text() if case.file == "CHECKPOINT" else case.file
    args = case.args.replace("BOX", (base / "BOX").read_text()).split()
    folder = Path(tempfile.mkdtemp(prefix="damaged-"))
    began = time.monotonic()
    try:
        _link(base, folder, file)
        content, kind = (base / file).read_bytes(), "none"
        if not unharmed:
            content, kind = damage(content, rng, text=case.text)
        (folder / file).write_bytes(content)
        before = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        os.chdir(folder)
        os.environ["LANDPRIOR_CACHE"] = str(folder / "cache")
        found = invoke(args)
        wrong = judge(found, folder, before)
    finally:
        os.chdir(base)
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "number": number, "case": case.name, "kind": kind, "code": found.code, "wrong": wrong,
        "text": found.text[-3000:] if wrong else found.text[-300:], "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip


def _link(base: Path, folder: Path, file: str) -> None:
    """Link the good files, but copy folders, which commands write to; leave out the file to be damaged."""
    for path in base.iterdir():
        if path.name in {"cache", "CHECKPOINT", "BOX", Path(file).name if "/" not in file else ""}:
            continue
        if path.name.endswith(".aux.xml") and not file.endswith(".aux.xml"):
            continue
        if path.is_dir():
            if path.name == file.partition("/")[0] or path.name in {"town", "naip", "idx"}:
                shutil.copytree(path, folder / path.name)
        elif path.name.startswith(".") and path.name != file:
            continue
        else:
            (folder / path.name).hardlink_to(path)


def work(arguments: argparse.Namespace) -> None:
    """Run cases, and print a line of JSON for each."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (20 << 30, 20 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.fdopen(os.dup(1), "w")
    for number in range(arguments.first, arguments.first + arguments.count * arguments.step, arguments.step):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(json.dumps({"begin": number}), file=log, flush=True)
        found = run_case(number, arguments.seed, Path(arguments.base), arguments.only)
        print(json.dumps(found), file=log, flush=True)
    faulthandler.cancel_dump_traceback_later()


def run_many(
    count: int, seed: int, *, base: Path, first: int = 0, jobs: int = 1, only: str = ""
) -> list[dict[str, object]]:
    """Run cases in worker processes; a worker that dies is one finding, and is restarted at the next case."""
    import concurrent.futures

    def follow(job: int) -> list[dict[str, object]]:
        done: list[dict[str, object]] = []
        number, last = first + job, first + count
        while number < last:
            left = len(range(number, last, jobs))
            options = {"base": base, "seed": seed, "first": number, "count": left, "step": jobs, "only": only}
            given = [f"--{name}={value}" for name, value in options.items()]
            command = [sys.executable, __file__, "--worker", *given]
            process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
            done += [line for line in lines if "case" in line]
            begun = [line["begin"] for line in lines if "begin" in line]
            if process.returncode == 0 and len(begun) == left:
                break
            if not begun:
                raise RuntimeError(process.stderr[-2000:])
            number = begun[-1]
            name = choose(number, seed, only)[0].name
            if not (done and done[-1]["number"] == number):
                done.append({"number": number, "case": name, "kind": "?", "code": process.returncode,
                             "wrong": "crash or hang", "text": process.stderr[-3000:], "seconds": SECONDS})  # fmt: skip
            number += jobs
        return done

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return [line for lines in pool.map(follow, range(jobs)) for line in lines]


def report(found: list[dict[str, object]]) -> str:
    """Return the counts by case and exit code, and all problems."""
    codes = Counter(f"exit {line['code']}" for line in found)
    wrong = [line for line in found if line["wrong"]]
    kinds = len({line["case"] for line in found})
    lines = [f"{len(found)} damaged inputs of {kinds} kinds: {dict(codes)}; {len(wrong)} wrong"]
    lines += [f"#{line['number']} {line['case']} ({line['kind']}): {line['wrong']}\n{line['text']}" for line in wrong]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--base")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    base = Path(arguments.base or tempfile.mkdtemp(prefix="good-"))
    if not (base / "blocks.csv").exists():
        base.mkdir(parents=True, exist_ok=True)
        build(base)
    if arguments.build:
        return
    found = run_many(
        arguments.count, arguments.seed, base=base, first=arguments.first, jobs=arguments.jobs, only=arguments.only
    )
    print(report(found))
    slowest = sorted(found, key=lambda line: -float(str(line["seconds"])))[:5]
    print("slowest:", [(line["case"], line["seconds"]) for line in slowest])
    Path("damaged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))


if __name__ == "__main__":
    main()
