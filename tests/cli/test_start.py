"""Help is instant, because nothing heavy is imported to show it."""

import subprocess
import sys
from pathlib import Path

import pytest

import landprior
from landprior.cli import _COMMANDS

HEAVY = {"torch", "torchgeo", "lightning", "rasterio", "geopandas", "numpy", "pydantic", "matplotlib"}

# runs the command line, and then lists the imported packages on stderr
SCRIPT = """
import sys
from landprior.cli import main
main(sys.argv[1:], prog_name="landprior", standalone_mode=False)
print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def imported_for(*arguments):
    """Return the output of a command line, and the packages that it imports in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=Path(landprior.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_imports_nothing_heavy(option):
    shown, packages = imported_for(option)
    assert "landprior" in shown
    assert {"click", "landprior"} <= packages
    assert not HEAVY & packages


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_a_command_imports_no_network_library(command):
    shown, packages = imported_for(command, "--help")
    assert f"landprior {command}" in shown
    assert not {"torch", "torchgeo", "lightning"} & packages


def test_case_does_not_matter_in_choices():
    from click.testing import CliRunner

    from landprior.cli import main

    found = CliRunner().invoke(
        main, ["train", "--loss", "QR", "--recipe", "Best", "--device", "CPU", "--image", "n.tif"]
    )
    assert "is not one of" not in found.output
    assert "Invalid value" not in found.output
    wrong = CliRunner().invoke(main, ["train", "--loss", "QRR"])
    assert "'QRR' is not one of" in wrong.output


def test_every_choice_of_every_command_ignores_case():
    import click

    from landprior.cli import _COMMANDS, main

    for name in _COMMANDS:
        command = main.get_command(click.Context(main), name)
        commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        for one in commands:
            for parameter in one.params:
                if isinstance(parameter.type, click.Choice):
                    assert parameter.type.case_sensitive is False, (name, parameter.name)
