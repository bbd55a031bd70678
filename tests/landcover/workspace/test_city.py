"""The meaning of a city argument, which is the same for all commands."""

import numpy as np
import pytest

from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.landcover.workspace.city import find_city
from landprior.landcover.workspace.collection import Workspace
from landprior.landcover.workspace.item import TileFolder
from landprior.landcover.workspace.settings import PipelineSettings
from landprior.raster.cog import write_raster
from landprior.sources.areas import area_from_city
from landprior.sources.cities import load_city
from landprior.sources.folder_names import MOST_BYTES, check_component

PRESET = """
name: {name}
title: A town
bounds: [-76.6, 42.4, -76.4, 42.5]
naip_year: 2021
nlcd_year: 2021
epsg: 26918
scheme: chesapeake-4
"""


@pytest.fixture
def preset(tmp_path):
    """Return a function that writes a preset file; the name inside may differ from the file name."""

    def write(name, file="my-area.yaml"):
        path = tmp_path / file
        path.write_text(PRESET.format(name=name))
        return path

    return write


@pytest.fixture
def workspace(tmp_path, make_grid):
    root = tmp_path / "data"
    for city in ("town", "Old Mill", "durham"):
        path = root / city / "t1" / "naip.tif"
        path.parent.mkdir(parents=True)
        write_raster(path, np.ones((4, 20, 20), np.uint8), make_grid(20, 20))
    return Workspace(root)


@pytest.mark.parametrize(
    ("text", "name", "is_preset"),
    [
        ("town", "town", False),
        ("TOWN", "town", False),
        ("old mill", "Old Mill", False),
        ("durham", "durham", True),
        ("Pittsburgh", "pittsburgh", True),
        ("PHOENIX", "phoenix", True),
        ("village", "village", False),
    ],
)
def test_a_city_by_name_in_any_case(workspace, text, name, is_preset):
    found = find_city(text, workspace.root)
    assert (found.name, found.preset is not None) == (name, is_preset)
    assert find_city(found, workspace.root) is found


def test_a_folder_with_exactly_this_name_takes_precedence_over_a_preset(workspace):
    (workspace.root / "Pittsburgh").mkdir()
    found = find_city("Pittsburgh", workspace.root)
    assert (found.name, found.preset) == ("Pittsburgh", None)
    assert find_city("PITTSBURGH", workspace.root).preset == load_city("pittsburgh")


def test_two_folders_that_differ_only_in_case(workspace):
    (workspace.root / "Town").mkdir()
    if not (workspace.root / "Town").samefile(workspace.root / "town"):
        assert [find_city(text, workspace.root).name for text in ("Town", "town")] == ["Town", "town"]
        with pytest.raises(InputError, match="'TOWN' could be Town or town"):
            find_city("TOWN", workspace.root)


@pytest.mark.parametrize("file", ["my-area.yaml", "my-area.yml", "MY-AREA.YAML"])
def test_the_name_in_a_preset_file_determines_its_folder(preset, workspace, file, monkeypatch):
    """All commands use the folder that fetch fills."""
    path = preset("town", file)
    monkeypatch.chdir(path.parent)
    for given in (path, str(path), path.name):
        found = find_city(given, workspace.root)
        assert found.name == "town" == area_from_city(found.preset).name
    assert [tile.id for tile in workspace.tiles(str(path))] == ["town/t1"]
    assert PipelineSettings.for_city(str(path)).scheme.name == "chesapeake-4"


HOSTILE = [
    "../../x",
    "..",
    ".",
    "/usr/x",
    "a/b",
    "a\\b",
    "",
    " ",
    ".hidden",
    "a\nb",
    "a\x00b",
    "a\x1b[31m",
    "x" * 300,
    "é" * 150,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_not_a_single_folder_is_refused_everywhere(tmp_path, workspace, preset, name):
    with pytest.raises(InputError, match="cannot be the name of") as caught:
        check_component(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    for make in (
        lambda: TileFolder.of(tmp_path, "town", name),
        lambda: TileFolder.of(tmp_path, name, "t1"),
        lambda: find_city(name, workspace.root),
        lambda: workspace.tiles(name),
    ):
        with pytest.raises(InputError):
            make()
    path = preset("x")
    path.write_text(path.read_text().replace("name: x", f"name: {name!r}" if name.isprintable() else 'name: "a\\tb"'))
    with pytest.raises(ConfigError, match=r"name: .* cannot be the name of a"):
        load_city(path)


def test_names_from_catalogues_are_accepted():
    for name in ("m_4008033_sw_17_060_20190814", "tile 1 (2)", "Zürich", "x" * MOST_BYTES):
        assert check_component(name) == name


def test_the_error_for_the_path_of_a_folder_gives_the_options(workspace):
    with pytest.raises(InputError, match=rf"--city town --data {workspace.root}"):
        find_city(workspace.root / "town", workspace.root)
    with pytest.raises(MissingInputError, match=r"no such file: none\.yaml"):
        find_city("none.yaml", workspace.root)


def test_a_link_to_a_tile_elsewhere_is_followed(workspace):
    """Links are made by the owner of the workspace, never by a plan, preset or catalogue."""
    (workspace.root / "linked").symlink_to(workspace.root / "town", target_is_directory=True)
    assert [tile.id for tile in workspace.tiles("linked")] == ["linked/t1"]
