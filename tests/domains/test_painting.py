"""Drawn priors, positions, and the command."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread, imsave
from rasterio.crs import CRS
from shapely.geometry import box, mapping

from landprior.cli import main
from landprior.domains.painting.drawing import (
    Palette,
    is_vector,
    list_classes,
    list_colours,
    make_palette,
    parse_colour,
    read_drawing,
    read_polygons,
)
from landprior.domains.painting.painting import Picture, paint
from landprior.errors import (
    ConfigError,
    GridMismatchError,
    InputError,
    MissingInputError,
    OutputExistsError,
    PriorError,
    RasterReadError,
    SchemeError,
)
from landprior.implicit.networks import build_positional_fcn
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.layers import PositionLayer
from landprior.landcover.training.model import load_model
from landprior.landcover.training.settings import make_settings
from landprior.raster.grid import Grid
from landprior.run import Run

RGB = make_palette(["sky=red", "ship=lime", "sea=blue"])
GRID = Grid(width=4, height=3, transform=Affine.identity())
MAP_GRID = Grid(width=40, height=30, transform=Affine(10, 0, 500_000, 0, -10, 4_000_300), crs=CRS.from_epsg(32617))
SIDE = 64


def write_png(path, values):
    imsave(path, np.ascontiguousarray(values))
    return path


def write_geojson(path, shapes, crs=None, **columns):
    """Write polygons in pixels or, if a CRS is given, in degrees."""
    shapes = shapes if crs is None else geopandas.GeoSeries(shapes, crs=crs).to_crs(4326)
    features = [
        {
            "type": "Feature",
            "geometry": mapping(shape),
            "properties": {name: values[i] for name, values in columns.items()},
        }
        for i, shape in enumerate(shapes)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


# -- colours -----------------------------------------------------------------------------------------


def test_colours_add_up_like_light():
    assert RGB.colours() == {
        (255, 0, 0): (0,),
        (0, 255, 0): (1,),
        (0, 0, 255): (2,),
        (255, 255, 0): (0, 1),
        (255, 0, 255): (0, 2),
        (0, 255, 255): (1, 2),
        (255, 255, 255): (0, 1, 2),
    }


def test_an_ambiguous_colour_has_no_meaning_unless_it_is_defined():
    classes = ["a=#ff0000", "b=#00ff00", "c=#ffff00", "d=#0000ff"]
    colours = make_palette(classes).colours()
    assert colours[255, 255, 0] == (2,)  # a class's own colour takes precedence over the sum of a and b
    assert (255, 255, 255) not in colours
    assert make_palette(classes, ["white=a|b|c|d"]).colours()[255, 255, 255] == (0, 1, 2, 3)


@given(st.sets(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=5))
def test_every_class_keeps_its_colour(colours):
    texts = [f"c{i}=#{r:02x}{g:02x}{b:02x}" for i, (r, g, b) in enumerate(sorted(colours))]
    palette = make_palette(texts)
    found = palette.colours()
    assert [found[c.rgb] for c in palette.scheme.classes] == [(i,) for i in range(len(colours))]
    assert all(len(set(allowed)) == len(allowed) for allowed in found.values())


@pytest.mark.parametrize(
    ("text", "colour"), [("#0a141E", (10, 20, 30)), (" red ", (255, 0, 0)), ("lime", (0, 255, 0)), ("0.5", (128,) * 3)]
)
def test_colours_by_code_and_name(text, colour):
    assert parse_colour(text) == colour


@pytest.mark.parametrize(
    ("classes", "sets", "error", "text"),
    [
        (["a"], [], ConfigError, "at least two classes"),
        (["a", "a"], [], ConfigError, "a, a"),
        (["a", "=red"], [], ConfigError, "with different names"),
        (["a=reddish", "b"], [], ConfigError, "'reddish' is not a colour"),
        (["a", "b"], ["red=c"], SchemeError, "'c' is not a class"),
        (["a", "b"], ["red="], ConfigError, "allows no class"),
    ],
)
def test_bad_palettes(classes, sets, error, text):
    with pytest.raises(error, match=text):
        make_palette(classes, sets)


def test_a_drawing_becomes_a_prior(tmp_path):
    drawn = np.zeros((3, 4, 4), np.uint8)
    drawn[..., 3] = 255
    drawn[0, :, 0] = 255  # sky
    drawn[1, :, 0] = drawn[1, :, 1] = 255  # sky or ship
    drawn[2, :2, 2] = 255  # sea
    drawn[2, 2:, 3] = 0  # transparent: black, which is not the colour of a class
    prior = read_drawing(write_png(tmp_path / "d.png", drawn), RGB, GRID, softness=0.2)
    assert prior.dtype == np.float32
    np.testing.assert_allclose(prior[:, 0, 1], np.array([1.2, 0.2, 0.2]) / 1.6, rtol=1e-6)
    np.testing.assert_allclose(prior[:, 1, 2], np.array([1.2, 1.2, 0.2]) / 2.6, rtol=1e-6)
    np.testing.assert_allclose(prior[:, 2, 0], np.array([0.2, 0.2, 1.2]) / 1.6, rtol=1e-6)
    np.testing.assert_allclose(prior[:, 2, 3], 1 / 3, rtol=1e-6)
    hard = read_drawing(tmp_path / "d.png", RGB, GRID, softness=0)
    assert hard[:, 0, 0].tolist() == [1, 0, 0]
    assert hard[:, 1, 1].tolist() == [0.5, 0.5, 0]


def test_drawings_with_indexed_colours_and_in_greyscale(tmp_path):
    indexed, grey = tmp_path / "indexed.png", tmp_path / "grey.png"
    values = np.array([[[0, 1, 2, 3]] * 3], np.uint8)
    with rasterio.open(indexed, "w", driver="PNG", width=4, height=3, count=1, dtype="uint8") as dst:
        dst.write(values)
        dst.write_colormap(1, {0: (255, 0, 0, 255), 1: (0, 255, 0, 255), 2: (255, 0, 255, 255), 3: (9, 9, 9, 0)})
    found = read_drawing(indexed, RGB, GRID, softness=0)[:, 0]
    np.testing.assert_allclose(found, [[1, 0, 0.5, 1 / 3], [0, 1, 0, 1 / 3], [0, 0, 0.5, 1 / 3]], rtol=1e-6)
    with rasterio.open(grey, "w", driver="PNG", width=4, height=3, count=1, dtype="uint8") as dst:
        dst.write(np.where(values > 1, 255, 0).astype(np.uint8))
    two = make_palette(["dark=black", "light=white"])
    assert read_drawing(grey, two, GRID, softness=0)[:, 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_drawings_that_do_not_fit_are_errors(tmp_path):
    drawn = np.zeros((3, 4, 3), np.uint8)
    drawn[..., 0] = 255
    drawn[1, 2] = (255, 1, 0)
    path = write_png(tmp_path / "d.png", drawn)
    with pytest.raises(
        SchemeError, match=r"row 1, column 2: #ff0100 \(8.3 %\).*sky #ff0000.*--set '#ff0100=sky\|ship'"
    ):
        read_drawing(path, RGB, GRID)
    assert list_colours(path) == ["#ff0000", "#ff0100"]
    with pytest.raises(GridMismatchError, match="4 x 3 px and the image 5 x 3"):
        read_drawing(path, RGB, Grid(width=5, height=3, transform=Affine.identity()))
    with pytest.raises(PriorError, match="softness"):
        read_drawing(path, RGB, GRID, softness=float("nan"))
    with pytest.raises(MissingInputError):
        read_drawing(tmp_path / "none.png", RGB, GRID)
    with rasterio.open(tmp_path / "f.tif", "w", driver="GTiff", width=4, height=3, count=3, dtype="float32") as dst:
        dst.write(np.zeros((3, 3, 4), np.float32))
    with pytest.raises(InputError, match="float32 numbers"):
        read_drawing(tmp_path / "f.tif", RGB, GRID)


# -- polygons ----------------------------------------------------------------------------------------


def test_polygons_in_pixels_with_later_ones_on_top(tmp_path):
    path = write_geojson(
        tmp_path / "p.geojson",
        [box(0, 0, 2, 3), box(1, 0, 3, 1)],
        **{"class": ["sky", "sea"], "weight": [None, 3.0]},
    )
    weights = read_polygons(path, RGB.scheme, GRID)
    assert weights[:, 2, 0].tolist() == [1, 0, 0]
    assert weights[:, 0, 1].tolist() == [0, 0, 3]
    assert weights[:, 0, 3].tolist() == [1, 1, 1]
    prior = read_drawing(path, RGB, GRID, softness=1)
    np.testing.assert_allclose(prior[:, 0, 1], [1 / 6, 1 / 6, 4 / 6], rtol=1e-6)


def test_polygons_in_a_crs_with_weights_by_class_name(tmp_path):
    left, bottom, right, top = MAP_GRID.bounds
    path = write_geojson(
        tmp_path / "p.geojson", [box(left, bottom, (left + right) / 2, top)], crs=MAP_GRID.crs, sky=[2.0], ship=[1.0]
    )
    weights = read_polygons(path, RGB.scheme, MAP_GRID)
    assert weights[:, 15, 5].tolist() == [2, 1, 0]
    assert weights[:, 15, 35].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=r"no polygon .* lies on the image"):
        read_polygons(path, RGB.scheme, MAP_GRID, pixels=True)


@pytest.mark.parametrize(
    ("columns", "error", "text"),
    [
        ({"class": ["cloud"]}, SchemeError, "'cloud' is not a class"),
        ({"class": ["sky"], "weight": [-1.0]}, PriorError, "feature 1: the weight -1.0 of sky"),
        ({"class": ["sky"], "weight": [0.0]}, PriorError, "all its weights are 0"),
        ({"sea": ["much"]}, PriorError, "'much' of sea"),
        ({"kind": ["sky"]}, SchemeError, "neither an attribute 'class' nor one named as a class"),
    ],
)
def test_bad_polygons(tmp_path, columns, error, text):
    path = write_geojson(tmp_path / "p.geojson", [box(0, 0, 2, 2)], **columns)
    with pytest.raises(error, match=text):
        read_polygons(path, RGB.scheme, GRID)


# -- positions ---------------------------------------------------------------------------------------


def test_positions_run_from_edge_to_edge_in_any_window():
    from rasterio.windows import Window

    places, valid = PositionLayer(GRID).read()
    np.testing.assert_allclose(places[0, :, 0], [-2 / 3, 0, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(places[1, 0], [-0.75, -0.25, 0.25, 0.75], atol=1e-6)
    assert valid.all()
    part, _ = PositionLayer(GRID).read(Window(1, 2, 3, 1))
    np.testing.assert_array_equal(part, places[:, 2:, 1:])


def test_the_network_encodes_positions_as_waves():
    torch.manual_seed(0)
    network = build_positional_fcn(3, 2, filters=4, waves=5)
    waves = network.body[0]
    x = torch.randn(1, 5, 6, 7)
    found = waves(x)
    assert found.shape == (1, 13, 6, 7)
    torch.testing.assert_close(found[:, :3], x[:, :3])
    weight, bias = waves.frequencies.weight[:, :, 0, 0], waves.frequencies.bias
    phase = torch.einsum("nkhw,fk->nfhw", x[:, 3:], weight) + bias[:, None, None]
    torch.testing.assert_close(found[:, 3:8] ** 2 + found[:, 8:] ** 2, (0 * phase + waves.scale**2))
    torch.testing.assert_close(found[:, 3:8], waves.scale * torch.sin(phase))


# -- end to end --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two halves that differ in colour, with the border elsewhere than in the drawing, and a second such picture."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(0)
    for name, edge in (("one", 40), ("two", 20)):
        truth = np.arange(SIDE)[None] >= edge + np.zeros((SIDE, 1))
        image = np.where(truth[..., None], (150, 90, 60), (60, 110, 170)) + rng.normal(scale=15, size=(SIDE, SIDE, 3))
        write_png(folder / f"{name}.png", np.clip(image, 0, 255).astype(np.uint8))
        drawn = np.zeros((SIDE, SIDE, 3), np.uint8)
        drawn[:, : edge + 12, 0] = 255
        drawn[:, edge - 12 :, 2] = 255
        write_png(folder / f"{name}_prior.png", drawn)
        np.save(folder / f"{name}.npy", truth)
    return folder


def settings(**changes):
    return make_settings(loss="rq", warmup="ce", steps=120, filters=8, patch_size=32, batch_size=8, **changes)


def read_classes(path):
    with rasterio.open(path) as src:
        return src.read(1)


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in ("-q", *arguments)])


def test_the_command_end_to_end(scene, tmp_path):
    out = tmp_path / "out"
    options = ["--class", "left=red", "--class", "right=blue", "--steps", 120, "--filters", 8, "--device", "cpu"]
    result = call("paint", scene / "one.png", "--prior", scene / "one_prior.png", *options, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    paths = json.loads(result.stdout)
    truth = np.load(scene / "one.npy")
    classes = read_classes(paths["classes"])
    assert (classes == 1 + truth).mean() > 0.98
    with rasterio.open(paths["classes"]) as src:
        assert src.colormap(1)[2][:3] == (0, 0, 255)
    red = imread(paths["r"])[..., 0] > 0.5
    assert (red == ~truth).mean() > 0.98
    assert imread(paths["overlay"]).shape[:2] == (SIDE, SIDE)
    assert {path.name for path in out.iterdir()} == {"one", "legend.png"}
    kept = {path.name for path in (out / "one").iterdir()}
    assert kept == {
        "classes.tif", "classes.tif.aux.xml", "classes.qml", "classes.png", "classes_probabilities.tif",
        "q.png", "r.png", "overlay.png", "prior.tif", "prior.png", "model.safetensors",
    }  # fmt: skip
    again = call("paint", scene / "one.png", "--prior", scene / "one_prior.png", *options, "-o", out)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    other = call("paint", scene / "two.png", "--model", paths["model"], "-o", tmp_path / "more")
    assert other.exit_code == 0, other.output
    assert (read_classes(tmp_path / "more" / "two" / "classes.tif") == 1 + np.load(scene / "two.npy")).mean() > 0.98
    assert not (tmp_path / "more" / "two" / "r.png").exists()


@pytest.mark.parametrize("position", [False, True])
def test_two_pictures_jointly_with_one_model(scene, tmp_path, position):
    pictures = [Picture(scene / f"{name}.png", scene / f"{name}_prior.png") for name in ("one", "two")]
    palette = make_palette(["left=red", "right=blue"])
    found = paint(
        pictures, tmp_path, palette=palette, settings=settings(), jointly=True, position=position, run=Run(device="cpu")
    )
    assert {one.model for one in found} == {tmp_path / "model.safetensors"}
    model = load_model(tmp_path / "model.safetensors")
    assert model.extras == (("position",) if position else ())
    assert model.record["tiles"] == ["one", "two"]
    for one, name in zip(found, ("one", "two"), strict=True):
        assert (read_classes(one.classes) == 1 + np.load(scene / f"{name}.npy")).mean() > 0.95
    # windows give the same as the whole image, including positions
    predict(pictures[0].image, tmp_path / "w.tif", model, window_size=16, run=Run(device="cpu"), force=True)
    predict(pictures[0].image, tmp_path / "q.tif", model, run=Run(device="cpu"), force=True)
    assert (read_classes(tmp_path / "w.tif") == read_classes(tmp_path / "q.tif")).all()
    with pytest.raises(OutputExistsError):
        paint(pictures, tmp_path, palette=palette, settings=settings(), jointly=True, run=Run(device="cpu"))


def test_a_georeferenced_image_with_polygons_that_define_the_classes(scene, tmp_path):
    image = (imread(scene / "one.png")[..., :3] * 255).round().astype(np.uint8).transpose(2, 0, 1)
    grid = Grid(width=SIDE, height=SIDE, transform=MAP_GRID.transform, crs=MAP_GRID.crs)
    with rasterio.open(
        tmp_path / "field.tif", "w", driver="GTiff", width=SIDE, height=SIDE, count=3, dtype="uint8",
        transform=grid.transform, crs=grid.crs,
    ) as dst:  # fmt: skip
        dst.write(image)
    left, bottom, right, top = grid.bounds
    shapes = [box(left, bottom, left + 280, top), box(right - 120, bottom, right, top)]
    prior = write_geojson(tmp_path / "p.geojson", shapes, crs=grid.crs, **{"class": ["a", "b"]})
    options = ["--steps", 120, "--filters", 8, "--device", "cpu", "-o", tmp_path / "out"]
    result = call("paint", tmp_path / "field.tif", "--prior", prior, *options)
    assert result.exit_code == 0, result.output
    with rasterio.open(result.stdout.strip()) as src:
        assert src.crs == grid.crs
        assert src.transform == grid.transform
        assert (src.read(1) == 1 + np.load(scene / "one.npy")).mean() > 0.95


def test_polygons_are_recognised_by_content_and_chosen_by_layer(scene, tmp_path):
    crs = MAP_GRID.crs
    left, bottom, right, top = MAP_GRID.bounds
    shapes = [box(left, bottom, left + 280, top), box(right - 120, bottom, right, top)]
    frame = geopandas.GeoDataFrame({"class": ["a", "b"]}, geometry=shapes, crs=crs.to_wkt())
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_file(tmp_path / "p.gpkg", layer="drawn")
    frame.assign(**{"class": "c"}).to_file(tmp_path / "p.gpkg", layer="draft")
    expected = read_polygons(tmp_path / "p.parquet", make_palette(["a", "b"]).scheme, MAP_GRID)
    for name in ("p.parquet", "p.gpkg|layername=drawn"):
        assert is_vector(tmp_path / name)
        assert list_classes(tmp_path / name) == ["a", "b"]
        found = read_polygons(tmp_path / name, make_palette(["a", "b"]).scheme, MAP_GRID)
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "picture").write_bytes((scene / "one_prior.png").read_bytes())
    assert not is_vector(tmp_path / "picture")
    result = call("paint", scene / "one.png", "--prior", tmp_path / "p.gpkg", "-o", tmp_path / "out")
    assert "2 layers: 'drawn'" in result.stderr
    options = ["--class", "a=red", "--class", "b=blue", "-o", tmp_path / "out"]
    result = call("paint", scene / "one.png", "--prior", tmp_path / "p.gpkg", "--layer", "none", *options)
    assert "no layer 'none'; it has 'drawn', 'draft'" in result.stderr
    result = call("paint", scene / "one.png", "--prior", scene / "one_prior.png", "--layer", "drawn", *options)
    assert result.exit_code == 2
    assert "no --prior is a file of polygons" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["{one}"], 2, "give the drawn prior of each image"),
        (["{one}", "{two}", "--prior", "{one_prior}"], 2, "2 images and 1 priors"),
        (["{one}", "--prior", "{one_prior}"], 2, "name the classes and their colours.* has #ff0000, #ff00ff, #0000ff"),
        (["{one}", "--prior", "{one_prior}", "--class", "a=red", "--class", "b=lime"], 1, "colours without a class"),
        (["{one}", "--model", "{one}", "--class", "a"], 2, "--class cannot be used with --model"),
        (["{one}", "--model", "{missing}"], 1, "no model at"),
        (
            ["{one}", "{one}", *("--prior", "{one_prior}") * 2, "--class", "a=red", "--class", "b=blue"],
            1,
            "two pictures are named one",
        ),
        (["{missing}", "--prior", "{one_prior}", "--class", "a=red", "--class", "b=blue"], 1, "no such file"),
    ],
)
def test_bad_calls(scene, tmp_path, arguments, code, text):
    import re

    names = {n: scene / f"{n}.png" for n in ("one", "two", "one_prior", "missing")}
    result = call("paint", *[a.format(**names) for a in arguments], "-o", tmp_path / "out")
    assert result.exit_code == code, result.output
    assert re.search(text, " ".join(result.stderr.split()))


def test_a_palette_is_needed_to_train(scene, tmp_path):
    with pytest.raises(InputError, match="give a palette or a model"):
        paint([Picture(scene / "one.png", scene / "one_prior.png")], tmp_path)
    with pytest.raises(InputError, match="has no prior"):
        paint([Picture(scene / "one.png")], tmp_path, palette=Palette(RGB.scheme, {}))


def test_a_damaged_drawing_gives_one_line(tmp_path):
    picture = np.zeros((40, 50, 3), np.uint8)
    picture[:, 20:] = (255, 0, 0)
    path = tmp_path / "drawn.png"
    imsave(path, picture)
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") + 6
    content[at : at + 20] = b"\0" * 20
    path.write_bytes(content)
    grid = Grid(width=50, height=40, transform=Affine.identity())
    for read in (list_colours, lambda picture: read_drawing(picture, make_palette(["a", "b"]), grid)):
        with pytest.raises(RasterReadError, match=r"drawn\.png is damaged or truncated"):
            read(path)
