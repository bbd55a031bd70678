"""Commands in README and on the pages: run on small inputs, or at least parsed by the command line."""

import contextlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from landprior.cli import main
from landprior.implicit.settings import TrainingSettings
from landprior.landcover.synthetic import demo
from landprior.landcover.training import ensemble
from landprior.landcover.training import settings as training_settings
from landprior.landcover.training.settings import TileSettings

from .commands import FENCE, Block, find_blocks, find_commands
from .inputs import QUICK, STEPS, Inputs

# tiny trainings give warnings
pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
PRINTING = [page for page in PAGES if any(command.words[0] == "landprior" for command in find_commands(page))]

SLOW = {
    "docs/research/epitomes.md",
    "docs/research/experiments.md",  # whole tables
    "docs/research/superres.md",  # every method
    "docs/weak-labels/density.md",  # several trainings
    "docs/weak-labels/partial-labels.md",
    "docs/weak-labels/ranks.md",
}

# Options that make a command small, unless it already has them.
TINY = "--filters 2 --patch-size 16 --batch-size 2"
SMALL = {
    "train": f"--steps 6 --warmup-steps 3 {TINY}",
    "epitome": "--steps 3 --epitome-size 16",
    "tune": "--steps 3 --filters 2 --patch-size 16 --batch-size 2",
    "learn-prior": "--steps 3 --filters 2",
    "plan": "--steps 4 --filters 2",
    "run": "",
    "demo": "--size 128 --filters 2",
    "cluster": "--steps 3 --filters 2",
    "paint": "--steps 3 --filters 2",
    "density": "--steps 20 --filters 2 --batch-size 4",
    "partial-labels": "--epochs 1 --filters 2",
    "rank": "--epochs 1 --filters 2",
    "text": "--epochs 1",
    "compare": "--seeds 1 --steps 4 --filters 2",
    "experiment": "--seeds 1 --steps 3 --filters 2",
}

# Commands that are only parsed: a part of the command, and why.
ONLY_PARSED = {
    "--place": "asks a public server where the place is",
    "--bbox": "asks a public catalogue of images",
    "fetch --city": "asks a public catalogue of images",
    "--dataset": "downloads gigabytes",
    "--download": "downloads from a public server",
    "--model gpt2": "downloads a language model",
    "--ray": "starts Ray; tests/batch/test_batch.py runs plans on it",
    "--shard auto": "takes the shard from a batch system; tests/batch/test_batch.py has these",
    "--device cuda": "needs a GPU",
    "experiment table": "needs a published set",
    "experiment city-windows": "needs a published set",
}

OTHERS = {"git", "cd", "cp", "source", "python", "pip", "pytest", "mkdocs", "nox", "pre-commit", "ruff", "mypy"}


def name_of(page):
    return page.relative_to(REPOSITORY).as_posix()


def commands_of(page):
    return [command for command in find_commands(page) if command.words[0] == "landprior"]


def get_command(words):
    """Return the click command that is called, and its arguments."""
    command, rest = main, list(words[1:])
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("-"):
            rest.pop(0)  # -q, -v
        command = command.get_command(click.Context(command), rest.pop(0))
        assert command is not None, words
    return command, rest


# -- parsing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PRINTING, ids=name_of)
def test_commands_are_parsed(page, monkeypatch, tmp_path):
    """Every command, option and choice exists; nothing is run."""
    monkeypatch.chdir(tmp_path)
    write_configurations(page, tmp_path)
    for printed in commands_of(page):
        command, rest = get_command(printed.words)
        for name in re.findall(r"--scheme (\S+\.yaml)", str(printed)):
            if not Path(name).exists():
                shutil.copy(REPOSITORY / "configs" / "schemes" / "enviroatlas-5.yaml", name)
        command.make_context(command.name, rest)


def test_pages_do_not_use_former_spellings():
    """Spellings that are only kept for one more release do not belong on a page."""
    for page in PRINTING:
        for printed in commands_of(page):
            command, rest = get_command(printed.words)
            hidden = {name for one in command.params if getattr(one, "hidden", False) for name in one.opts}
            hidden |= set(getattr(command, "former", {}))
            assert not hidden & set(rest), printed


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_in_shell_blocks(page):
    for block in find_blocks(page):
        if block.language not in {"sh", "bash", "console"}:
            assert not re.search(r"^ *landprior [a-z]", block.text, flags=re.MULTILINE), (page, block.line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_commands_are_known(page):
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for command in find_commands(page):
        assert command.words[0] in OTHERS | {"landprior"}, command
        if command.words[0] == "pip":
            wanted = re.findall(r"\[([\w,-]+)\]", str(command))
            assert {extra for part in wanted for extra in part.split(",")} <= set(extras)
        if command.words[0] == "pytest":
            paths = [word for word in command.words[1:] if "/" in word]
            assert all((REPOSITORY / path).exists() for path in paths), command


# -- commands and options in running text -----------------------------------------------------------


def spans_of(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def all_options():
    """Return the options of each command, by name."""
    found = {}
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        below = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        found[name] = {
            option
            for one in below
            for parameter in one.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        } | {"--help"}
    found[""] = {"-q", "-v", "-vv", "--version", "--help", "-h"}
    return found


# options of benchmarks and of other programs
FOREIGN = {"--choose", "--develop", "--part", "--pictures", "--sets", "--show", "--strict", "-k", "-m", "-n", "-s"}
PROGRAMS = OTHERS | {"gdal_rasterize", "gdal_translate", "gdalbuildvrt", "gdalinfo", "overturemaps"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_options_in_running_text_exist(page):
    options = all_options()
    for span in spans_of(page):
        words = shlex.split(span) if span.count("'") % 2 == 0 and span.count('"') % 2 == 0 else span.split()
        words = words[1:] if words[:1] == ["landprior"] else words
        given = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
        if not words or not given or words[0] in PROGRAMS:
            continue
        commands = [name for name in words[0].split("|") if name in options]
        wanted = [options[name] for name in commands] or [set().union(*options.values()) | FOREIGN]
        assert all(given <= known for known in wanted), f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_benchmarks_have_the_options_that_pages_use(page):
    for span in spans_of(page):
        found = re.match(r"python -m benchmarks(?:\.(\w+))?(.*)", span)
        if found is None:
            continue
        home = REPOSITORY / "benchmarks" / (found[1] or "__main__")
        source = home / "__main__.py" if home.is_dir() else home.with_suffix(".py")
        known = set(re.findall(r'"(--?[a-z][\w-]*)"', source.read_text(encoding="utf-8")))
        assert {word for word in found[2].split() if word.startswith("-")} <= known | {"--help"}, f"{page}: {span}"


# -- running --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quick(**changes):
    """Return settings of a training of four steps."""
    return TileSettings(
        **QUICK | {"training": TrainingSettings(**STEPS)} | {k: v for k, v in changes.items() if k != "filters"}
    )


def write_configurations(page, folder):
    """Write the configuration and the matrix on a page to the file names that its commands use."""
    printed = " ".join(map(str, commands_of(page)))
    for suffix, language, start in ((".yaml", "yaml", ""), (".csv", "", "nlcd,")):
        names = re.findall(rf"(?:--scheme|--cooccurrence|compare|experiment) (\S+\{suffix})", printed)
        shown = [
            block.text for block in find_blocks(page) if block.language == language and block.text.startswith(start)
        ]
        if names and shown and not (folder / names[0]).exists():
            (folder / names[0]).write_text(shown[0], encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if name_of(page) in SLOW else [], id=name_of(page))
        for page in PRINTING
    ],
)
def test_commands_work(page, inputs, tmp_path, monkeypatch):
    """The commands on a page succeed one after the other, and write their outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LANDPRIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(demo, "TileSettings", quick)
    write_configurations(page, tmp_path)
    for step in steps_of(page):
        if isinstance(step, Block):
            exec(compile(step.text, name_of(page), "exec"), {})  # noqa: S102 - code on pages must run
        elif step.words[0] == "cp":
            subprocess.run(step.words, check=True)
        elif not any(word in str(step) for word in ONLY_PARSED):
            run(prepare(step, inputs, tmp_path), step)


def steps_of(page):
    """Return the landprior commands of a page, and the steps between them that copy files or run Python."""
    steps = [command for command in find_commands(page) if command.words[0] in {"landprior", "cp"}]
    steps += find_blocks(page, "python") if page.name == "tutorial.md" else []
    return sorted(steps, key=lambda step: step.line)


def run(words, printed):
    """Run a command, and check that it succeeds and has written its output."""
    with contextlib.ExitStack() as stack:
        if words[1] == "run" and not words[2].endswith(".json"):
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(training_settings, "TileSettings", quick)
        result = CliRunner().invoke(main, words[1:], prog_name="landprior")
    assert result.exit_code == 0, f"{printed}\n{result.output}"
    command, rest = get_command(tuple(words))
    output = command.make_context(command.name, rest).params.get("output")
    assert output is None or Path(output).exists(), printed


def prepare(printed, inputs, folder):
    """Make the inputs of a command, and return its words with small settings."""
    words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in printed.words]
    words = [word.replace("/shared/landprior", str(folder / "shared")) for word in words]
    words = ["0/1" if word == "3/16" else word for word in words]  # there is only one tile here
    command, _ = get_command(tuple(words))
    scheme = words[words.index("--scheme") + 1] if "--scheme" in words else "enviroatlas-5"
    outputs = {words[at + 1] for at, word in enumerate(words) if word in {"-o", "--output", "--save-prior"}}
    for word in words[2:]:
        path = folder / word.partition("|")[0]
        if not word.startswith("-") and word not in outputs and not path.exists():
            inputs.provide(path, scheme)
        if path.name in {"points.gpkg", "more.gpkg"} and path.exists():
            inputs.interpret(path)
    if words[1] == "compare":
        inputs.make_comparison(folder)
        # mapping with an epitome of full size takes ten minutes; docs/research/epitomes.md has a small one
        names = ("prior", "qr", "rq", "sr", "sr, U-Net", "soft-naive", "hard-naive", "em", "self-epitome")
        words += [word for name in names for word in ("--method", name)]
    if words[1] == "experiment" and "--root" in words:
        inputs.make_experiment(folder / words[words.index("--root") + 1])
    if "--city" in words and words[1] != "fetch":
        city = folder / "landprior-data" / words[words.index("--city") + 1]
        if not city.exists():
            inputs.make_tiles(city, scheme)
    small = shlex.split(SMALL.get("epitome" if "epitome" in words else words[1], ""))
    pairs = [small[at : at + 2] for at in range(0, len(small), 2)]
    known = {name for parameter in command.params for name in parameter.opts}
    words += [word for pair in pairs if pair[0] not in words and pair[0] in known for word in pair]
    if "--aoi" in words and "--naip" not in words:
        place = inputs.place
        words += ["--naip", str(place.image.parent), "--nlcd", str(place.nlcd), "--osm", "none", "--buildings", "none"]
    return words


# -- Python ---------------------------------------------------------------------------------------

SCRIPTS = [block for page in PAGES if page.name != "tutorial.md" for block in find_blocks(page, "python")]


@pytest.mark.parametrize("block", SCRIPTS, ids=[f"{name_of(block.page)}:{block.line}" for block in SCRIPTS])
def test_python_works(block, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile(block.text, name_of(block.page), "exec")
    for name in ("naip.tif", "nlcd.tif", "roads.tif", "labels.tif"):
        inputs.provide(tmp_path / name)
    if "parcels.gpkg" in block.text:
        for name in ("map.tif", "parcels.gpkg"):
            inputs.provide(tmp_path / name)
    if "skimage" in block.text:
        pytest.importorskip("skimage", reason="scikit-image is not installed; pip install scikit-image")
    if "fetch(" in block.text:  # needs public servers: only the imports are run
        code = "\n".join(line for line in block.text.splitlines() if line.startswith(("from ", "import ")))
    monkeypatch.setattr(ensemble, "TileSettings", quick)
    exec(code, {"__name__": "__main__"})  # noqa: S102 - code on pages must run
