"""A model refuses another kind of image, with advice, and raises no false alarm on images of the same kind."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from landprior.errors import InputError, ModelError, PriorError
from landprior.landcover.mapping.predict import predict
from landprior.landcover.prior.learned import require_size
from landprior.landcover.training.files import train_files
from landprior.landcover.training.image_kind import ImageKind
from landprior.landcover.training.layers import ImageLayer
from landprior.landcover.training.model import load_model, save_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::landprior.errors.HarmWarning", "ignore::landprior.errors.CollapseWarning"
)

RGBN = ("red", "green", "blue", "nir")


@pytest.fixture
def write(tmp_path):
    """Return a factory of images, by default with values like those of a NAIP tile."""

    def make(name, values=None, *, dtype="uint8", scale=1.0, pixel=1.0, names=RGBN, epsg=26917, colours=None, **more):
        if values is None:
            values = np.random.default_rng(3).integers(20, 220, (4, 48, 56)) * scale
        values = np.asarray(values).astype(dtype)
        profile = {
            "driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
            "dtype": dtype, "crs": CRS.from_epsg(epsg), "transform": Affine(pixel, 0, 6e5, 0, -pixel, 4.5e6), **more,
        }  # fmt: skip
        with rasterio.open(tmp_path / name, "w", **profile) as dst:
            dst.write(values)
            if colours:
                dst.colorinterp = colours
            for index, text in enumerate(names or (), 1):
                dst.set_band_description(index, text)
        return tmp_path / name

    return make


@pytest.fixture
def trained(make_model):
    """Return a factory of models that record an image as their training data."""

    def make(image):
        with ImageLayer(image) as layer:
            kind = ImageKind.of(layer)
        return make_model(bands=len(kind.names), filters=4, record={"image": kind.model_dump()})

    return make


@pytest.fixture
def model(write, trained):
    return trained(write("train.tif"))


def palette(write):
    path = write("palette.tif", np.random.default_rng(0).integers(0, 9, (1, 48, 56)), names=None, photometric="palette")
    with rasterio.open(path, "r+") as dst:
        dst.write_colormap(1, {i: (i, 2 * i, 3 * i, 255) for i in range(9)})
    return path


def test_the_kind_is_recorded_in_the_model(tmp_path, write, make_prior, quick):
    train_files([(write("train.tif"), make_prior("p.tif", 48, 56))], tmp_path / "m.safetensors", settings=quick())
    kind = ImageKind.model_validate(load_model(tmp_path / "m.safetensors").record["image"])
    assert (kind.dtype, kind.names, kind.nodata) == ("uint8", list(RGBN), "none")
    assert kind.pixel_size == pytest.approx(1, rel=0.01)
    assert kind.low == pytest.approx([22] * 4, abs=3)
    assert kind.high == pytest.approx([217] * 4, abs=3)


OTHERS = {
    "uint16": ({"dtype": "uint16", "scale": 257}, r"values are uint16 of about .*trained on uint8 of about 2\d"),
    "the same values as floats": ({"dtype": "float32"}, "values are float32"),
    "reflectance": ({"dtype": "float32", "scale": 1 / 255}, r"values are float32 of about 0\.0\d+ to 0\.8"),
    "bytes of 0 to 2": ({"scale": 0.01}, "values are uint8 of about 0 to 2"),
    "blue first": ({"names": ("blue", "green", "red", "nir")}, r"band 1 is blue, and was red in training \(and 1 more"),
    "infrared first": ({"names": ("NIR", "R", "G", "B")}, "band 1 is nir, and was red"),
    "other bands": ({"names": ("red", "green", "blue", "SWIR 1")}, "band 4 is swir1, and was nir"),
    "2 m": ({"pixel": 2.0}, r"its pixels are 2 m wide, those trained on 1 m"),
    "0.6 m": ({"pixel": 0.6}, r"its pixels are 0.6 m wide"),
}


@pytest.mark.parametrize("how", OTHERS)
def test_another_kind_of_image_is_refused_with_advice(tmp_path, write, model, how, caplog):
    options, message = OTHERS[how]
    image = write("other.tif", **options)
    with pytest.raises(ModelError, match=f"other.tif is another kind of image .*{message}.*--force"):
        predict(image, tmp_path / "map.tif", model)
    assert not (tmp_path / "map.tif").exists()
    predict(image, tmp_path / "map.tif", model, force=True)
    assert "another kind of image" in caplog.text


FINE = {
    "the same": {},
    "another season": {"values": np.random.default_rng(5).integers(60, 140, (4, 48, 56))},
    "water": {"values": np.random.default_rng(5).integers(6, 12, (4, 48, 56))},
    "clouds": {"values": np.random.default_rng(5).integers(250, 256, (4, 48, 56))},
    "no names": {"names": None},
    "names that are numbers": {"names": ("Band 1", "band_2", "B3", "4")},
    "a date in the names": {"names": ("m_3908_20190802.tif", "b 20190802", "", "x2019")},
    "1.3 m": {"pixel": 1.3},
    "no data marked": {"nodata": 0},
    "small": {"values": np.random.default_rng(5).integers(20, 220, (4, 16, 17))},
    "a black margin": {"values": np.pad(np.arange(1600).reshape(4, 20, 20) % 199 + 9, ((0, 0), (20, 20), (20, 20)))},
}  # fmt: skip


@pytest.mark.parametrize("how", FINE)
def test_images_of_the_same_kind_are_mapped(tmp_path, write, model, how):
    predict(write("fine.tif", **FINE[how]), tmp_path / "map.tif", model)


def test_near_infrared_declared_as_alpha_is_the_same_band(tmp_path, write, model):
    rgba = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    image = write("alpha.tif", colours=rgba, names=None)
    predict(image, tmp_path / "map.tif", model)


def test_without_descriptions_colours_give_the_order_of_bands(tmp_path, write, trained):
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    values = np.random.default_rng(3).integers(20, 220, (3, 48, 56))
    model = trained(write("rgb.tif", values, names=None, colours=rgb, photometric="rgb"))
    image = write("bgr.tif", values, names=None, colours=rgb[::-1])
    with pytest.raises(ModelError, match="band 1 is blue, and was red"):
        predict(image, tmp_path / "map.tif", model)


@pytest.mark.parametrize(
    ("trained_on", "given"),
    [
        (
            {"dtype": "uint16", "scale": 15},
            {"dtype": "uint16", "scale": 1},
        ),  # reflectance times 10,000, compared with bytes
        ({"dtype": "uint16", "scale": 1}, {"dtype": "uint16", "scale": 15}),
        ({"dtype": "float32", "scale": 1 / 255}, {"dtype": "float32", "scale": 1}),
        ({"dtype": "float32", "scale": 1}, {"dtype": "float32", "scale": 1 / 255}),
        ({"dtype": "float64", "scale": 40}, {"dtype": "float64", "scale": 0.004}),
    ],
)
def test_other_units_of_the_same_type_are_refused(tmp_path, write, trained, trained_on, given):
    model = trained(write("train.tif", **trained_on))
    with pytest.raises(ModelError, match="its values are"):
        predict(write("given.tif", **given), tmp_path / "map.tif", model)


@pytest.mark.parametrize("shown", [slice(None), slice(0, 40)])
def test_an_undeclared_alpha_band_is_not_taken_for_infrared(tmp_path, write, model, shown):
    """Drone mosaics often have red, green, blue and an undeclared mask of 0 and 255."""
    values = np.random.default_rng(3).integers(20, 220, (4, 48, 56))
    values[3] = 0
    values[3, :, shown] = 255
    image = write("drone.tif", values, names=None, photometric="minisblack")
    with pytest.raises(ModelError, match="its band 4 holds only 0 and the largest number, like a mask"):
        predict(image, tmp_path / "map.tif", model)
    white = write("white.tif", np.full((4, 48, 56), 255), photometric="minisblack")  # entirely cloud
    predict(white, tmp_path / "map.tif", model)


def test_band_names_derived_from_the_file_are_ignored(tmp_path, write, trained):
    """R writes names such as ``tile1_1`` to ``tile1_4``."""
    model = trained(write("tile1.tif", names=[f"tile1_{n}" for n in range(1, 5)]))
    predict(write("tile2.tif", names=[f"tile2_{n}" for n in range(1, 5)]), tmp_path / "map.tif", model)
    again, mixed = trained(write("named.tif")), write("mixed.tif", names=("red", "green", "blue", "swir2"))
    with pytest.raises(ModelError, match="band 4 is swir2, and was nir in training"):
        predict(mixed, tmp_path / "2.tif", again)


def test_a_possibly_different_kind_gives_a_warning(tmp_path, write, trained, caplog):
    """Infrared of 0 may be water; bands starting with blue may be right for a model whose images had no band names."""
    bare = {"names": None, "photometric": "minisblack"}
    model = trained(write("train.tif", **bare))
    predict(write("fine.tif", photometric="minisblack"), tmp_path / "0.tif", model)
    assert "may be another kind" not in caplog.text
    predict(write("bgrn.tif", names=("blue", "green", "red", "nir")), tmp_path / "1.tif", model)
    assert "bgrn.tif may be another kind of image" in caplog.text
    assert "blue, green, red, nir, and the model does not store their order" in caplog.text
    values = np.random.default_rng(3).integers(20, 220, (4, 48, 56))
    values[3] = 0
    predict(write("dark.tif", values, **bare), tmp_path / "2.tif", model)
    assert "dark.tif may be another kind" in caplog.text
    assert "band 4 is 0 nearly everywhere" in caplog.text


def test_the_error_for_too_few_bands_mentions_an_alpha_band(tmp_path, write, model):
    values = np.random.default_rng(3).integers(20, 220, (4, 48, 56))
    values[3] = 255
    image = write("rgba.tif", values, names=None, photometric="rgb", alpha="yes")
    with pytest.raises(ModelError, match=r"has 3 bands .* trained on 4.*its band 4 is named alpha"):
        predict(image, tmp_path / "map.tif", model)


def test_values_in_a_band_that_was_constant_in_training_are_refused(tmp_path, write, trained):
    values = np.random.default_rng(3).integers(20, 220, (4, 48, 56))
    dead = values.copy()
    dead[0] = 7
    model = trained(write("dead.tif", dead))
    with pytest.raises(ModelError, match="its band 1 holds values, and was 7 everywhere in training"):
        predict(write("live.tif", values), tmp_path / "map.tif", model)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, False),
        ({"values": np.random.default_rng(5).integers(0, 25, (4, 48, 56))}, False),
        ({"dtype": "float32"}, False),  # the type is not known
        ({"dtype": "float32", "scale": 1 / 255}, True),
        ({"dtype": "uint16", "scale": 257}, True),
        ({"dtype": "uint16", "scale": 15}, True),
    ],
)
def test_models_without_a_recorded_kind_are_compared_by_their_bands(tmp_path, write, model, options, refused):
    model.record.pop("image")
    image = write("given.tif", **options)
    if not refused:
        predict(image, tmp_path / "map.tif", model)
        return
    with pytest.raises(ModelError, match="bands have means of about 1"):
        predict(image, tmp_path / "map.tif", model)


def test_an_invalid_kind_is_a_one_line_error(tmp_path, write, model):
    model.record["image"] = {"low": "no"}
    with pytest.raises(ModelError, match="record of its training images is invalid"):
        predict(write("given.tif"), tmp_path / "map.tif", model)


def test_palette_images_are_refused(tmp_path, write, make_prior, quick, make_model):
    image = palette(write)
    prior = make_prior("p.tif", 48, 56)
    with pytest.raises(InputError, match=r"palette.tif has a palette.*gdal_translate -expand rgb"):
        train_files([(image, prior)], tmp_path / "m.safetensors", settings=quick())
    for force in (False, True):
        with pytest.raises(InputError, match="has a palette"):
            predict(image, tmp_path / "map.tif", make_model(bands=1), force=force)


def test_images_of_two_kinds_are_not_trained_on_together(tmp_path, write, make_prior, quick):
    one, other = write("one.tif"), write("other.tif", dtype="uint16", scale=100)
    with pytest.raises(InputError, match=r"other.tif is another kind of image than one.tif: .*images of one kind"):
        train_files(
            [(one, make_prior("a.tif", 48, 56)), (other, make_prior("b.tif", 48, 56))],
            tmp_path / "m.safetensors",
            settings=quick(),
        )


def test_a_start_from_another_kind_of_image_is_refused(tmp_path, write, model, make_prior, quick):
    save_model(model, tmp_path / "train.safetensors")
    for name, options in (("a.tif", {"pixel": 3.0}), ("b.tif", {"names": RGBN[::-1]})):
        image = write(name, **options)
        prior = make_prior(f"p{name}", 48, 56, grid=ImageLayer(image).grid)
        with pytest.raises(ModelError, match="the model to start from was trained on another kind of image"):
            train_files(
                [(image, prior)], tmp_path / "m.safetensors", settings=quick(), init=tmp_path / "train.safetensors"
            )


def test_a_learned_prior_needs_pixels_of_the_same_size(make_model, make_grid):
    model = make_model(record={"image": {"pixel_size": 1.0}})
    require_size(model, make_grid(pixel=1.4), None, "nlcd.tif")
    with pytest.raises(
        PriorError, match=r"size than nlcd.tif: its pixels are 30 m wide, those trained on 1 m.*--pixel-size"
    ):
        require_size(model, make_grid(pixel=30.0), None, "nlcd.tif")
    require_size(model, make_grid(pixel=30.0), 1.0, "nlcd.tif")


@pytest.mark.realdata
def test_real_naip_of_all_places_and_years_is_one_kind(real_data):
    """Every NAIP image compared with every other, except for pixel sizes, gives no false alarm."""
    paths = [
        path
        for path in sorted(real_data.rglob("*.tif"))
        if "naip" in str(path).lower()
        and not any(word in path.stem for word in ("prior", "label", "lc", "nlcd", "mask", "reference", "landuse"))
    ]  # fmt: skip
    layers = []
    for path in paths:
        with ImageLayer(path) as layer:
            if layer.bands in (3, 4) and layer.src.dtypes[0] == "uint8":
                layers.append((path, ImageKind.of(layer)))
    assert len(layers) > 20
    compared = 0
    for path, kind in layers:
        for other_path, other in layers:
            if len(kind.names) == len(other.names):
                found = [one for one in kind.differences(other) if "m wide" not in one]
                assert not found, (path, other_path, found)
                compared += 1
    assert compared > 200
