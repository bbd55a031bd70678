"""Every option of every command with impossible values and files: one line, never a traceback or a hang."""

import json
import os
import pickle
import shutil
import signal
import traceback

import click
import geopandas
import numpy as np
import pytest
import shapely
from click.testing import CliRunner

from landprior.cli import _COMMANDS, main
from landprior.cli.parameters import OUTPUT, SchemeType
from landprior.errors import InputError

OUTPUTS = {"output", "figure", "save_prior"}
"""Parameters that name an output file; cluster's --model is another."""

BASES = {
    "fetch": ["--bbox", "-81,40,-80.99,40.01", "--data", "{work}", "--offline", "--dry-run"],
    "build-prior": ["--nlcd", "{nlcd.tif}", "--like", "{image.tif}", "--scheme", "enviroatlas-5", "-o", "{out.tif}"],
    "learn-prior": [
        "--nlcd",
        "{nlcd.tif}",
        "--labels",
        "{labels.tif}",
        "--scheme",
        "enviroatlas-5",
        "--steps",
        "1",
        "--filters",
        "2",
        "-o",
        "{out.safetensors}",
    ],
    "train": [
        "--image",
        "{image.tif}",
        "--prior",
        "{prior.tif}",
        "--steps",
        "1",
        "--filters",
        "2",
        "--device",
        "cpu",
        "-o",
        "{out.safetensors}",
    ],
    "tune": [
        "--image",
        "{image.tif}",
        "--prior",
        "{prior.tif}",
        "--validation-image",
        "{image.tif}",
        "--reference",
        "{labels.tif}",
        "--steps",
        "1",
        "--filters",
        "2",
        "--rates",
        "0.001",
        "-o",
        "{out}",
    ],
    "predict": ["{image.tif}", "--model", "{model.safetensors}", "--engine", "torch", "-o", "{out.tif}"],
    "adapt": [
        "--model",
        "{model.safetensors}",
        "--image",
        "{image.tif}",
        "--prior",
        "{prior.tif}",
        "--points",
        "{labelled.csv}",
        "--device",
        "cpu",
        "-o",
        "{out.safetensors}",
    ],
    "self-epitome": ["{image.tif}", "--nlcd", "{nlcd.tif}", "--scheme", "enviroatlas-5", "-o", "{out.tif}"],
    "epitome": ["{model.safetensors}", "-o", "{out.png}"],
    "evaluate": ["{labels.tif}", "{labels.tif}", "--scheme", "enviroatlas-5"],
    "sample": ["{labels.tif}", "--scheme", "enviroatlas-5", "--count", "8", "-o", "{out.gpkg}"],
    "zonal": ["{labels.tif}", "{areas.gpkg}", "--scheme", "enviroatlas-5", "-o", "{out.csv}"],
    "polygons": ["{labels.tif}", "--scheme", "enviroatlas-5", "-o", "{out.gpkg}"],
    "sieve": ["{labels.tif}", "--scheme", "enviroatlas-5", "--minimum-area", "2", "-o", "{out.tif}"],
    "cooccurrence": ["{nlcd.tif}", "{labels.tif}", "--scheme", "enviroatlas-5", "-o", "{out.csv}"],
    "run": ["{plan.json}", "--device", "cpu"],
    "plan": ["--city", "place", "--scheme", "enviroatlas-5", "--data", "{work}", "-o", "{out.json}"],
    "status": ["{plan.json}"],
    "mosaic": ["{plan.json}", "-o", "{out.tif}"],
    "compare": ["{compare.yaml}", "-o", "{out}", "--dry-run"],
    "experiment": ["table1", "--root", "{work}", "-o", "{out}", "--dry-run"],
    "partial-labels": ["{images.npz}", "--negatives", "1", "--epochs", "1", "--filters", "2", "-o", "{out}"],
    "cluster": ["{image.tif}", "-k", "2", "--steps", "1", "--filters", "2", "-o", "{out.tif}"],
    "assign": ["{labels.tif}", "--points", "{points.csv}", "--scheme", "enviroatlas-5", "-o", "{out.tif}"],
    "text": ["{documents.csv}", "--tree", "{tree.yaml}", "--prior", "{prior.csv}", "--epochs", "1", "-o", "{out.csv}"],
    "rank": ["{images.npz}", "--draw", "10", "--epochs", "1", "--filters", "2", "-o", "{out}"],
    "paint": [
        "{image.tif}",
        "--prior",
        "{painted.png}",
        "--set",
        "#ff0000=a",
        "--set",
        "#00ff00=b",
        "--steps",
        "1",
        "--filters",
        "2",
        "-o",
        "{out}",
    ],
    "density": [
        "{image.tif}",
        "--coarse",
        "{coarse.csv}",
        "--block",
        "20",
        "--classes",
        "2",
        "--steps",
        "1",
        "--filters",
        "2",
        "--no-maps",
        "-o",
        "{out}",
    ],
    "demo": ["-o", "{out}", "--size", "128", "--filters", "2"],
    "cache info": [],
    "cache clear": ["--folder", "{work}"],
    "doctor": [],
}

SUFFIXES = {
    "cooccurrence": ".csv",
    "points": ".csv",
    "coarse": ".csv",
    "pairs": ".csv",
    "table": ".csv",
    "candidates": ".csv",
    "measure": ".csv",
    "documents": ".csv",
    "polygons": ".gpkg",
    "tree": ".yaml",
    "scheme": ".yaml",
    "config": ".yaml",
    "plan": ".json",
    "model": ".safetensors",
    "init": ".safetensors",
    "learned": ".safetensors",
    "aoi": ".geojson",
    "osm": ".gpkg",
    "buildings": ".geojson",
    "embeddings": ".npz",
    "data": ".npz",
}


def commands():
    for name in _COMMANDS:
        command = main.get_command(None, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())
        else:
            yield name, command


VALUES = [
    "",
    " ",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "99999999999999999999",
    "4294967296",
    "x\ny",
    "\udce9",
    "é森",
    "a,b",
    "1:2:3",
    "--",
    "../..",
    "/dev/null",
    "x" * 300,
]
KINDS = [
    "missing",
    "folder",
    "empty",
    "junk",
    "latin",
    "pipe",
    "null",
    "list",
    "number",
    "deep",
    "pickle",
    "long",
    "blank",
]
SWAPPED = ["raster", "vector"]
"""Valid files, but mostly not of the kind that is needed."""

NOT_READ = {
    *(
        (name, "workspace") for name in ("build-prior", "learn-prior", "train", "predict")
    ),  # used only without plain files
    *(("plan", name) for name in ("aoi", "naip", "nlcd", "osm", "buildings", "labels")),  # the place already exists
    ("cache info", "folder"),
    ("cache clear", "folder"),
}
"""Inputs for which a call with a bad file may succeed."""

LONG = {("run", "retries"), ("demo", "seed")}
"""Options that make a call compute, or wait for a cluster, for minutes."""


def is_input(command, parameter):
    if parameter.name in OUTPUTS or (command, parameter.name) == ("cluster", "model"):
        return False
    if command in ("fetch", "run", "plan") and parameter.name in ("osm", "nlcd", "buildings"):
        return True
    return isinstance(parameter.type, (click.Path, SchemeType))


def inputs_of(name):
    return [p for p in command_of(name).params if is_input(name, p)]


def others_of(name):
    return [
        p
        for p in command_of(name).params
        if not is_input(name, p)
        and p.name not in OUTPUTS
        and not getattr(p, "is_flag", False)
        and (name, p.name) not in {("cluster", "model"), *LONG}
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a folder with a valid file of every kind that a command needs."""
    import torch
    from affine import Affine
    from PIL import Image
    from rasterio.crs import CRS

    from landprior.implicit.networks import build_fcn
    from landprior.landcover.training.model import BandStatistics, LandcoverModel, save_model
    from landprior.raster.cog import write_raster
    from landprior.raster.grid import Grid
    from landprior.raster.scheme import load_scheme

    folder = tmp_path_factory.mktemp("good")
    rng, scheme = np.random.default_rng(0), load_scheme("enviroatlas-5")
    grid = Grid(width=50, height=40, transform=Affine(1, 0, 600_000, 0, -1, 4_500_000), crs=CRS.from_epsg(26917))
    tile = folder / "work" / "place" / "t1"
    tile.mkdir(parents=True)
    image = rng.integers(1, 255, (4, 40, 50)).astype("uint8")
    nlcd = np.full((40, 50), 41, "uint8")
    nlcd[:, 25:] = 22
    for path in (folder / "image.tif", tile / "naip.tif"):
        write_raster(path, image, grid)
    for path in (folder / "nlcd.tif", tile / "nlcd.tif"):
        write_raster(path, nlcd, grid)
    write_raster(folder / "labels.tif", rng.choice(scheme.codes, (40, 50)), grid)
    prior = rng.dirichlet(np.ones(5), (40, 50)).transpose(2, 0, 1).astype("float32")
    write_raster(folder / "prior.tif", prior, grid, tags={"scheme": scheme.model_dump_json(exclude_defaults=True)})
    model = LandcoverModel(
        network=build_fcn(4, 5, filters=2).eval(),
        scheme=scheme,
        statistics=BandStatistics(mean=np.full(4, 99.0), std=np.ones(4)),
        filters=2,
        record={},
    )
    save_model(model, folder / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, folder / "torch.pt")
    np.savez(folder / "images.npz", images=rng.integers(0, 255, (40, 8, 8), dtype=np.uint8), labels=np.arange(40) % 4)
    painted = np.zeros((40, 50, 3), "uint8")
    painted[:20, :, 0], painted[20:, :, 1] = 255, 255
    Image.fromarray(painted).save(folder / "painted.png")
    texts = {
        "points.csv": "x,y,class\n600010.5,4499990.5,1\n600020.5,4499980.5,3\n",
        "labelled.csv": "row,col,class\n"
        + "".join(f"{3 * i},{4 * i},{('trees', 'grass')[i % 2]}\n" for i in range(12)),
        "coarse.csv": "image,row,col,class\n"
        + "".join(f"image.tif,{r},{c},{(r + c) % 2}\n" for r in (0, 1) for c in (0, 1)),
        "documents.csv": "id,text,coarse\n"
        + "".join(f"{i},word{i % 4} other,{'a' if i % 2 else 'b'}\n" for i in range(12)),
        "tree.yaml": "a: [a1, a2]\nb: [b1, b2]\n",
        "prior.csv": "id,a1,a2,b1,b2\n" + "".join(f"{i},0.25,0.25,0.25,0.25\n" for i in range(12)),
        "compare.yaml": "scheme: enviroatlas-5\nplaces: {a: [t]}\n"
        "files: {image: image.tif, nlcd: nlcd.tif, labels: labels.tif}\n",
        "vector.geojson": json.dumps(
            {
                "type": "FeatureCollection",
                "features": [
                    {
                        "type": "Feature",
                        "properties": {"class": 1},
                        "geometry": {"type": "Point", "coordinates": [-79.8, 40.6]},
                    }
                ],
            }
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    square = shapely.box(600_005, 4_499_970, 600_025, 4_499_990)
    geopandas.GeoDataFrame({"parcel": [1]}, geometry=[square], crs=26917).to_file(folder / "areas.gpkg")
    arguments = [
        "-q",
        "plan",
        "--city",
        "place",
        "--scheme",
        "enviroatlas-5",
        "--data",
        str(folder / "work"),
        "-o",
        str(folder / "plan.json"),
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return folder


def bad_file(kind, suffix, good, folder):
    """Make a bad file of a kind, and return its path as text."""
    path = folder / f"{kind}{suffix}"
    contents = {
        "empty": b"",
        "junk": bytes(range(256)) * 8,
        "latin": "name;for\u00eat\nclass;\u00e9\n".encode("latin-1"),
        "list": b"[1, [2, 3], null]",
        "number": b"7",
        "deep": b"[" * 5000,
        "pickle": pickle.dumps({"a": [1]}),
        "blank": b"\n\n",
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir(exist_ok=True)
    elif kind == "pipe" and not path.exists():
        os.mkfifo(path)
    elif kind == "null":
        return "/dev/null"
    elif kind == "raster":
        return str(good / "image.tif")
    elif kind == "vector":
        return str(good / "vector.geojson")
    elif kind == "long":
        return str(folder / f"{'x' * 300}{suffix}")
    return str(path)


def arguments_of(command, good, folder, parameter, value):
    """Return the arguments of a base call with one value replaced or added."""
    base = []
    for part in BASES[command]:
        name = part[1:-1]
        if part == "{work}":
            base.append(str(good / "work"))
        elif part.startswith("{out"):
            base.append(str(folder / name))
        else:
            base.append(str(good / name) if part.startswith("{") else part)
    values = [value] * (parameter.nargs if parameter.nargs > 0 else 1)
    if isinstance(parameter, click.Argument):
        positional = [p for p in command_of(command).params if isinstance(p, click.Argument)]
        at = positional.index(parameter)
        if at < len(base) and not base[at].startswith("--"):
            base[at] = value
        else:
            base.insert(0, value)
    elif option := next((o for o in parameter.opts if o in base), None):
        base[base.index(option) + 1] = value
    else:
        base += [max(parameter.opts, key=len), *values]
    return [*command.split(), *base]


def command_of(name):
    return dict(commands())[name]


def run_bad(arguments):
    """Run a command line that should fail; return its exit code and, if it failed in the wrong way, how."""

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300)
    try:
        result = CliRunner().invoke(main, ["-q", *arguments])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return None, "".join(traceback.format_exception(result.exception)[-3:])
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    if result.exit_code not in (0, 1, 2):
        return result.exit_code, f"exit code {result.exit_code}"
    if result.exit_code and (len(errors) != 1 or "Traceback" in result.stderr):
        return result.exit_code, f"not one line: {result.stderr!r}"
    if result.exit_code == 1 and not result.stderr.splitlines()[-1].startswith("Error: "):
        return 1, f"more after the error: {result.stderr!r}"
    return result.exit_code, None


def try_files(command, good, folder, choose):
    """Pass bad files to every input of a command; return the faults and the number of calls."""
    faults, calls = [], 0
    for number, parameter in enumerate(inputs_of(command)):
        suffix = SUFFIXES.get(parameter.name, ".tif")
        for kind in choose([*KINDS, *SWAPPED], number):
            calls += 1
            bad = bad_file(kind, suffix, good, folder)
            code, fault = run_bad(arguments_of(command, good, folder, parameter, bad))
            if fault is None and code == 0 and kind in KINDS and (command, parameter.name) not in NOT_READ:
                fault = "is taken"
            if fault is not None:
                faults.append(f"{command} {parameter.name} {kind}: {fault}")
    return faults, calls


def try_values(command, good, folder, choose):
    """Pass bad values to every other option of a command; return the faults and the number of calls."""
    faults, calls = [], 0
    for number, parameter in enumerate(others_of(command)):
        for value in choose(VALUES, number):
            if value == "--" and parameter.name == "ray":
                continue  # its value is optional: this ends the options
            calls += 1
            _, fault = run_bad(arguments_of(command, good, folder, parameter, value))
            if fault is not None:
                faults.append(f"{command} {parameter.name} {value[:30]!r}: {fault}")
    return faults, calls


def two(things, number):
    """Return two of the things, different ones for each number."""
    return [things[(2 * number + one) % len(things)] for one in range(2)]


def one(things, number):
    """Return one of the things, a different one for each number."""
    return [things[number % len(things)]]


def test_every_command_is_covered():
    assert {name for name, _ in commands()} == set(BASES)


@pytest.mark.parametrize("command", BASES)
def test_bad_files_give_one_line(command, good, tmp_path):
    faults, _ = try_files(command, good, tmp_path, two)
    assert not faults


@pytest.mark.parametrize("command", BASES)
def test_bad_values_give_one_line(command, good, tmp_path):
    faults, _ = try_values(command, good, tmp_path, one)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize("command", BASES)
def test_all_bad_files_and_values_give_one_line(command, good, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "values").mkdir()
    files, of_files = try_files(command, good, tmp_path / "files", lambda things, _: things)
    values, of_values = try_values(command, good, tmp_path / "values", lambda things, _: things)
    print(f"{command}: {of_files + of_values} calls")
    assert not files + values


SPELLINGS = ("same", "symlink", "hard link", "dots", "linked folder")


def spell(path, way):
    """Return another name for a file, in a folder that contains a folder ``work``."""
    if way == "symlink":
        other = path.with_name(f"link{path.suffix}")
        other.symlink_to(path)
    elif way == "hard link":
        other = path.with_name(f"hard{path.suffix}")
        other.hardlink_to(path)
    elif way == "dots":
        other = path.parent / "work" / ".." / path.name
    elif way == "linked folder":
        (path.parent.parent / "elsewhere").symlink_to(path.parent)
        other = path.parent.parent / "elsewhere" / path.name
    else:
        other = path
    return other


def input_of(command, parameter, good):
    """Return a valid file for an input: that of the base call, or one with the usual extension."""
    line = arguments_of(command, good, good, parameter, "@")
    at = line.index("@") - len(command.split())
    base = BASES[command]
    if len(line) == len(base) + len(command.split()) and base[at].startswith("{"):
        return good / base[at][1:-1]
    path = good / f"input{SUFFIXES.get(parameter.name, '.tif')}"
    if parameter.name == "scheme":
        path.write_text(
            "name: mine\nclasses:\n"
            + "".join(f'  - {{code: {code}, name: class {code}, colour: "#00c5f{code}"}}\n' for code in (1, 2, 3))
        )
    else:
        shutil.copy(good / "image.tif", path)
    return path


def writers():
    for name, command in commands():
        files = [p for p in command.params if p.type is OUTPUT]
        sources = [one for one in inputs_of(name) if one.name != "workspace"]
        yield from ((name, one, other) for one in files for other in sources)


@pytest.mark.parametrize(
    ("command", "output", "source", "way"),
    [
        pytest.param(*one, SPELLINGS[number % len(SPELLINGS)], id=f"{one[0]} {one[1].name} {one[2].name}")
        for number, one in enumerate(writers())
    ],
)
def test_outputs_never_replace_inputs(command, output, source, way, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "good", symlinks=True)
    path = input_of(command, source, folder)
    before = path.read_bytes()
    line = arguments_of(command, folder, tmp_path, source, str(path))
    other = str(spell(path, way))
    option = next((o for o in output.opts if o in line), None)
    if option is None:
        line += [max(output.opts, key=len), other]
    else:
        line[line.index(option) + 1] = other
    if any(p.name == "overwrite" for p in command_of(command).params):
        line.append("--overwrite")
    result = CliRunner().invoke(main, ["-q", *line])
    assert (result.exit_code in (1, 2), path.read_bytes() == before) == (True, True), result.output
    assert "is the input" in result.stderr or "input folder" in result.stderr


def test_files_in_a_folder_of_results_do_not_replace_inputs(tmp_path):
    results = tmp_path / "out"
    results.mkdir()
    pairs = results / "report.json"
    pairs.write_text("a,b\n")
    from landprior.raster.outputs import protecting, replacing

    with (
        protecting([pairs, tmp_path / ("x" * 300)]),
        pytest.raises(InputError, match="would replace the input"),
        replacing(results / ".." / "out" / "report.json", overwrite=True),
    ):
        pytest.fail("was let through")
    assert pairs.read_text() == "a,b\n"
    with replacing(pairs, overwrite=True) as temporary:
        temporary.write_text("new")
    assert pairs.read_text() == "new"
