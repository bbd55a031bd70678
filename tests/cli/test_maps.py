"""The options for files written with a map, which all commands that write maps share."""

import click
import numpy as np
import pytest
from matplotlib.image import imread

from landprior.cli import main
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.training.model import save_model
from landprior.raster.cog import write_raster
from landprior.raster.reading import open_raster
from landprior.raster.scheme import ClassScheme
from tests.helpers import good, run

SIDE = 48
WRITTEN = {  # options of each command; without an option for them, probabilities are always written
    "predict": ("probabilities", "encoding", "confidence", "style", "quicklook"),
    "run": ("probabilities", "encoding", "confidence", "style", "quicklook"),
    "self-epitome": ("probabilities", "encoding", "style", "quicklook"),
    "assign": ("probabilities", "encoding", "style", "quicklook"),
    "cluster": ("encoding", "confidence", "style", "quicklook"),
    "density": ("encoding", "confidence", "style", "quicklook"),
    "paint": ("encoding", "confidence", "style"),  # always writes a picture
}


@pytest.fixture
def folder(tmp_path, make_grid, rng, make_model, monkeypatch):
    """An image of two halves, with every input that one of the commands needs."""
    monkeypatch.chdir(tmp_path)
    right = np.arange(SIDE)[None] >= SIDE // 2 + np.zeros((SIDE, 1))
    image = np.where(right, np.array((150, 90, 60, 90))[:, None, None], np.array((60, 110, 170, 30))[:, None, None])
    image = np.clip(image + rng.normal(scale=8, size=image.shape), 1, 255).astype(np.uint8)
    image[:, :4, :4] = 0
    grid = make_grid(SIDE, SIDE)
    write_raster(tmp_path / "image.tif", image, grid, nodata=0)
    write_raster(tmp_path / "nlcd.tif", np.where(right, 23, 41).astype(np.uint8), grid)
    drawn = np.zeros((3, SIDE, SIDE), np.uint8)
    drawn[0, :, :30], drawn[2, :, 20:] = 255, 255
    write_raster(tmp_path / "drawn.tif", drawn, grid)
    shares = np.stack([np.where(right, 0.9, 0.1), np.where(right, 0.1, 0.9)]).astype(np.float32)
    shares[:, :4, :4] = np.nan
    write_raster(tmp_path / "clusters.tif", shares, grid, nodata=float("nan"))
    (tmp_path / "points.csv").write_text("row,col,class\n" + "".join(f"{r},{c},{1 + c // 24}\n" for r, c in POINTS))
    blocks = "".join(f"image.tif,{r},{c},{c}\n" for r in range(4) for c in range(4))
    (tmp_path / "blocks.csv").write_text(f"image,row,col,class\n{blocks}")
    (tmp_path / "two.yaml").write_text(
        'name: two\nclasses:\n  - {code: 1, name: left & wet, colour: "#0000ff"}\n'
        '  - {code: 2, name: right, colour: "#ff0000"}\n'
    )
    save_model(make_model(), tmp_path / "model.safetensors")
    return tmp_path


POINTS = [(r, c) for r in (10, 30) for c in (10, 14, 34, 40)]
LINES = {
    "predict": ("predict image.tif --model model.safetensors --force -o {}/map.tif", "map.tif"),
    "self-epitome": (
        "self-epitome image.tif --nlcd nlcd.tif --scheme enviroatlas-5 --shrink 4 -o {}/map.tif",
        "map.tif",
    ),
    "assign": ("assign clusters.tif --points points.csv --scheme two.yaml --draws 0 -o {}/map.tif", "map.tif"),
    "cluster": ("cluster image.tif -k 3 --filters 4 --steps 3 -o {}/map.tif", "map.tif"),
    "density": (
        "density image.tif --coarse blocks.csv --block 12 --steps 3 --warmup-steps 1 --filters 4 --patch-size 12 -o {}",
        "image.tif",
    ),
    "paint": (
        "paint image.tif --prior drawn.tif --class left=red --class right=blue --steps 3 --filters 4 -o {}",
        "image/classes.tif",
    ),
}


@pytest.mark.parametrize("command", LINES)
def test_style_picture_and_encoding_follow_the_options_and_the_map_stays_the_same(folder, command):
    line, name = LINES[command]
    wanted = WRITTEN[command]
    for place in ("plain", "full"):
        (folder / place).mkdir()
    good(line.format("plain"))
    flags = " ".join(f"--{option}" for option in wanted if option != "encoding")
    good(f"{line.format('full')} {flags} --encoding uint8")
    plain, full = folder / "plain" / name, folder / "full" / name
    with open_raster(plain) as src, open_raster(full) as other:
        codes = src.read(1)
        np.testing.assert_array_equal(other.read(1), codes)
        assert other.colormap(1) == src.colormap(1)
    assert set(np.unique(codes)) > {255}
    scheme = _scheme(command, folder)
    # the probabilities
    with open_raster(full.with_name(f"{full.stem}_probabilities.tif")) as src:
        assert set(src.dtypes) == {"uint8"}
        assert src.tags(ns="landprior")["encoding"] == "uint8"
        shares = src.read().astype(float)
    known = codes != 255
    np.testing.assert_allclose(shares.sum(0), np.where(known, 255, 0), atol=len(scheme))
    beside = plain.with_name(f"{plain.stem}_probabilities.tif")
    assert beside.exists() == ("probabilities" not in wanted)
    if beside.exists():
        with open_raster(beside) as src:
            assert src.tags(ns="landprior")["encoding"] == "float16"
            np.testing.assert_allclose(src.read()[:, known], shares[:, known] / 255, atol=0.004)
    # the style
    style = full.with_suffix(".qml").read_text(encoding="utf-8")
    assert [f'value="{one.code}" color="{one.colour.lower()}"' in style for one in scheme.classes] == [True] * len(
        scheme
    )
    assert plain.with_suffix(".qml").read_text(encoding="utf-8") == style  # by default
    # the picture
    picture = np.round(imread(full.with_suffix(".png")) * 255).astype(np.uint8)
    np.testing.assert_array_equal(picture, scheme.render(codes))
    assert plain.with_suffix(".png").exists() == (command == "paint")
    # the confidence
    certain = full.with_name(f"{full.stem}_confidence.tif")
    assert certain.exists() == ("confidence" in wanted)
    if certain.exists():
        with open_raster(certain) as src:
            largest = src.read(1)
        np.testing.assert_allclose(largest[known] / 250, shares.max(0)[known] / 255, atol=0.006)
    assert not plain.with_name(f"{plain.stem}_confidence.tif").exists()


def _scheme(command, folder):
    from landprior.domains.clustering.training import make_scheme as make_clusters
    from landprior.domains.density.training import make_scheme as make_density
    from landprior.domains.painting.drawing import make_palette
    from landprior.raster.scheme import load_scheme

    made = {
        "assign": lambda: load_scheme(folder / "two.yaml"),
        "cluster": lambda: make_clusters(3),
        "density": lambda: make_density("background", "target"),
        "paint": lambda: make_palette(["left=red", "right=blue"]).scheme,
    }
    found = made.get(command, lambda: load_scheme("enviroatlas-5"))()
    assert isinstance(found, ClassScheme)
    return found


@pytest.mark.parametrize("command", WRITTEN)
def test_all_commands_share_the_same_options(command):
    found = main.get_command(click.Context(main), command)
    named = [p for p in found.params if p.name in MapOptions.__dataclass_fields__]
    finishing = ("finish", "finish_width") if command in {"predict", "run"} else ()  # others are drawings, or rivals
    assert tuple(p.name for p in named) == WRITTEN[command] + finishing
    assert {p.group for p in named} == {"Map"}
    theirs = main.get_command(click.Context(main), "predict").params
    for one in named:
        other = next(p for p in theirs if p.name == one.name)
        assert (one.opts, one.default, one.help, str(one.type)) == (
            other.opts,
            other.default,
            other.help,
            str(other.type),
        )


@pytest.mark.parametrize("command", ["predict", "self-epitome", "assign"])
def test_encoding_needs_probabilities(folder, command):
    (folder / "out").mkdir()
    result = run(f"-q {LINES[command][0].format('out')} --encoding uint8")
    assert result.exit_code == 2
    assert "--encoding cannot be used with a map only" in result.stderr
    assert not list((folder / "out").iterdir())


def test_an_existing_picture_is_not_replaced(folder):
    for command in ("cluster", "self-epitome", "assign", "predict"):
        place = folder / command
        place.mkdir()
        (place / "map.png").write_bytes(b"mine")
        result = run(f"-q {LINES[command][0].format(command)} --quicklook")
        assert result.exit_code == 1, command
        assert "map.png exists" in result.stderr
        assert [path.name for path in place.iterdir()] == ["map.png"]


def test_a_map_without_a_style_and_one_whose_style_was_made_in_qgis(folder):
    line = LINES["predict"][0].format(".")
    good(f"{line} --no-style")
    assert not (folder / "map.qml").exists()
    assert run(f"-q {line}").exit_code == 1  # the map is there
    good(f"{line} --overwrite")
    old = (folder / "map.qml").read_text()
    good(f"{line} --overwrite --no-style")  # the old style describes the old map
    assert not (folder / "map.qml").exists()
    mine = old.replace("<qgis ", '<qgis version="3.34" ')
    (folder / "map.qml").write_text(mine)
    refused = run(f"-q {line} --overwrite")
    assert refused.exit_code == 1
    assert "map.qml is not a style by landprior, and is kept; move it away" in refused.stderr
    assert (folder / "map.qml").read_text() == mine


def test_density_adds_the_style_of_an_older_map_and_runs_again_for_missing_files_beside_its_maps(folder):
    line, out = LINES["density"][0].format("out"), folder / "out"
    good(line)
    first = (out / "image.tif").stat().st_mtime_ns
    good(line)
    assert (out / "image.tif").stat().st_mtime_ns == first
    style = (out / "image.qml").read_bytes()
    (out / "image.qml").unlink()
    good(line)
    assert (out / "image.qml").read_bytes() == style
    assert (out / "image.tif").stat().st_mtime_ns == first
    good(f"{line} --style --encoding uint8")
    assert (out / "image.qml").exists()
    with open_raster(out / "image_probabilities.tif") as src:
        assert src.dtypes[0] == "uint8"
    again = (out / "image.tif").stat().st_mtime_ns
    assert again > first
    good(f"{line} --style --encoding uint8")
    assert (out / "image.tif").stat().st_mtime_ns == again
    refused = run(f"-q {line} --no-maps --style")
    assert refused.exit_code == 2
    assert "--style cannot be used with --no-maps" in refused.stderr
