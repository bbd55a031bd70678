"""Help texts can be read option by option and are in groups; former spellings still work, with a warning."""

import re
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from landprior.cli import _COMMANDS, SECTIONS, main
from landprior.cli.command import Command, group_of, grouped
from landprior.cli.fields import field_option, field_options, find_field, make_checked, pick_given
from landprior.cli.workspace import STEPS, choose_steps

pytestmark = pytest.mark.filterwarnings("default::landprior.errors.LandpriorWarning")

LONGEST = 200
"""Maximum number of lines in a module of the command line."""

LONGER = {
    "__init__.py": "the commands, and what goes wrong in any of them",
    "density.py": "many options of its own",
    "doctor.py": "a list of checks",
    "learn_prior.py": "plain files and workspaces",
    "places.py": "what fetch, run and plan share",
    "text.py": "many options of its own",
}

FRAGMENT = re.compile(r"(of|its?|their|them|they|these|those|this|that|he|she|we|for how|the same)\b", re.IGNORECASE)


def leaves():
    """Return all commands, including subcommands, by the words to type."""
    found = {}
    for name in _COMMANDS:
        command = main.get_command(click.Context(main), name)
        below = command.commands if isinstance(command, click.Group) else {"": command}
        found |= {f"{name} {one}".strip(): entry for one, entry in below.items()}
    return found


@pytest.mark.parametrize("name", leaves())
def test_every_option_has_its_own_sentence_of_help(name):
    for param in leaves()[name].params:
        if not isinstance(param, click.Option) or param.hidden:
            continue
        text = re.sub(r"\s*\[default: .*\]$", "", param.help or "")
        where = f"{name} {param.opts[0]}: {param.help!r}"
        assert re.match("[A-Z1-9]", text), where
        assert text.endswith("."), where
        assert len(text.split()) >= 3, where
        assert not FRAGMENT.match(text), where
        assert "may repeat" not in text, where


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_summary_of_a_command_is_one_line(name):
    text = _COMMANDS[name][1]
    assert text[0].isupper()
    assert text.endswith(".")
    assert len(f"  {name}  {text}") <= 80


def test_help_has_sections():
    shown = CliRunner().invoke(main, ["--help"]).stdout
    titles = ["Map a place", "Your own files", "How good is it", "Many tiles", "Other weak labels", "Research"]
    assert [title for title in SECTIONS if title in titles] == titles
    places = [shown.index(f"\n{title}:\n") for title in SECTIONS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["run", "fetch", "plan", "train", "predict", "build-prior", "learn-prior", "density"])
def test_long_commands_have_groups_of_options(name):
    command = leaves()[name]
    shown = CliRunner().invoke(main, [name, "--help"]).stdout
    titles = list(dict.fromkeys(group_of(param) for param in command.params if isinstance(param, click.Option)))
    assert len(titles) >= 4
    for title in titles:
        assert f"\n{title}:\n" in shown
    for param in command.params:
        if isinstance(param, click.Option):
            assert re.search(rf"^  (.*, )?{re.escape(param.opts[-1])}\b", shown, flags=re.MULTILINE), param.name


@pytest.mark.parametrize(
    "path", sorted(Path(main.get_command.__code__.co_filename).parent.glob("*.py")), ids=lambda p: p.name
)
def test_modules_of_the_command_line_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST or path.name in LONGER
    assert path.name not in {"run.py", "train.py"} or lines <= LONGEST


# -- former spellings -----------------------------------------------------------------------------


def former():
    return [(name, old, new) for name, one in leaves().items() for old, new in getattr(one, "former", {}).items()]


@pytest.mark.parametrize(("name", "old", "new"), former())
def test_a_former_spelling_is_translated_with_a_warning(name, old, new):
    command = leaves()[name]
    assert new in {spelling for param in command.params for spelling in param.opts}
    assert old not in {spelling for param in command.params for spelling in param.opts}
    with pytest.warns(FutureWarning, match=f"landprior {name}: {old} is now called {new}"):
        assert command._translate(["x", old, "value", f"{old}=value", "--", old]) == [
            "x",
            new,
            "value",
            f"{new}=value",
            "--",
            old,
        ]


def test_points_reference_and_labels_mean_the_same_in_every_command():
    """Labelled points, truth used only for scores, and 1 m labels to learn from."""
    pairs = {(name, old): new for name, old, new in former()}
    assert pairs["build-prior", "--labels"] == "--points"
    assert {pairs[name, "--labels"] for name in ("fetch", "run", "plan")} == {"--reference"}
    assert pairs["density", "--points"] == "--reference"
    assert pairs["tune", "--validation-labels"] == "--reference"
    said = {name: {o for p in one.params for o in p.opts} for name, one in leaves().items()}
    assert {name for name, opts in said.items() if "--labels" in opts} == {"train", "tune", "learn-prior", "assign"}
    assert {name for name, opts in said.items() if "--points" in opts} == {
        "build-prior", "train", "adapt", "run", "plan", "zonal", "assign"
    }  # fmt: skip


def test_a_former_spelling_still_works_with_a_warning_on_stderr():
    line = ["build-prior", "--nlcd", "n.tif", "--scheme", "enviroatlas-5", "--label-weight", "0.5", "-o", "p.tif"]
    result = CliRunner().invoke(main, line)
    assert "--label-weight is now called --points-weight; the old name will stop working" in result.stderr
    assert "--points-weight cannot be used with a prior without --points" in result.stderr or "n.tif" in result.stderr


# -- options generated from fields ----------------------------------------------------------------


class Inner(BaseModel):
    rate: float = Field(0.5, gt=0, le=1, description="Rate of the thing.")


class Outer(BaseModel):
    inner: Inner = Inner()
    kind: Literal["a", "b"] = Field("a", description="Kind of the thing.")
    count: int | None = Field(None, ge=1, description="Number of things.  [default: many]")
    names: tuple[str, ...] = Field((), description="Names of the things.")
    sure: bool = Field(default=True, description="Whether it is sure.")


def make_command(**options):
    @click.command(cls=Command)
    @grouped("Things", *field_options(Outer, "kind", "count", "names", "rate", "sure", **options))
    def command(**given):
        click.echo(repr(pick_given(given)))

    return command


def test_an_option_has_the_name_choices_range_default_and_help_of_its_field():
    shown = " ".join(
        CliRunner().invoke(make_command(others={"best": Outer(inner=Inner(rate=1.0))}), ["--help"]).stdout.split()
    )
    assert "Things: --kind [a|b] Kind of the thing. [default: a]" in shown
    assert "--count INTEGER RANGE Number of things. [default: many] [x>=1]" in shown
    assert "--rate FLOAT RANGE Rate of the thing. [default: 0.5; best 1] [0<x<=1]" in shown
    assert "--names TEXT Names of the things; may be repeated." in shown
    assert "--sure / --no-sure Whether it is sure." in shown


def test_only_given_values_are_passed_on():
    command = make_command()
    assert CliRunner().invoke(command, []).stdout == "{}\n"
    line = ["--kind", "b", "--count", "3", "--names", "x", "--names", "y", "--rate", "1", "--no-sure"]
    expected = {"kind": "b", "count": 3, "names": ("x", "y"), "rate": 1.0, "sure": False}
    assert CliRunner().invoke(command, line).stdout == f"{expected!r}\n"
    assert CliRunner().invoke(command, ["--rate", "0"]).exit_code == 2
    assert CliRunner().invoke(command, ["--kind", "c"]).exit_code == 2


def test_fewer_choices_and_another_spelling():
    @click.command(cls=Command)
    @field_option(Outer, "kind", "--sort", "-s", choices=("b",))
    def command(kind):
        click.echo(kind)

    assert CliRunner().invoke(command, ["-s", "b"]).stdout == "b\n"
    assert CliRunner().invoke(command, ["--sort", "a"]).exit_code == 2


def test_an_unknown_field():
    with pytest.raises(KeyError, match="colour"):
        find_field(Outer, "colour")
    info, get = find_field(Outer, "rate")
    assert (info.default, get(Outer())) == (0.5, 0.5)


def test_contradictory_values_are_a_usage_error():
    assert make_checked(Inner, "the thing", rate=0.1).rate == 0.1
    with pytest.raises(click.UsageError, match="the thing"):
        make_checked(Inner, "the thing", rate=2)


def test_steps_are_put_in_the_order_of_the_pipeline():
    assert choose_steps(()) == STEPS
    assert choose_steps((("map", "prior"), ("model",))) == ("prior", "model", "map")
