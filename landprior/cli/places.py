"""Options of ``fetch``, ``run`` and ``plan`` for places and their sources, and their handling."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import grouped
from landprior.cli.fields import field_option, pick_given
from landprior.cli.parameters import INPUT
from landprior.landcover.workspace.fetch_settings import FetchSettings
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from landprior.landcover.workspace.city import CityRef
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.layout import FetchPlan
    from landprior.raster.scheme import ClassScheme
    from landprior.sources.areas import Area
    from landprior.sources.http.client import Network


class BoundsType(click.ParamType):  # type: ignore[type-arg]  # generic only in some versions of click
    """Four numbers, ``west,south,east,north``."""

    name = "west,south,east,north"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, float, float, float]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        from landprior.errors import LandpriorError
        from landprior.sources.areas import parse_bounds

        try:
            return parse_bounds(value)
        except LandpriorError as error:
            self.fail(str(error), param, ctx)


_AREA_OPTIONS = (
    click.option("--bbox", type=BoundsType(), help="Box in degrees: west,south,east,north (longitude first)."),
    click.option("--place", help='Name of a place, such as "Ithaca, NY" (looked up with Nominatim).'),
    click.option("--aoi", type=INPUT, help="File with the outline of the place: GeoJSON, GeoPackage, ... in any CRS."),
    click.option(
        "--name",
        help="Name of the place's folder in the workspace.  [default: made from the place, the file or the box]",
    ),
)
place_options = grouped("Place", shared.city_option, *_AREA_OPTIONS, shared.tile_option, shared.workspace_option)
"""Options that select the place and the workspace."""

fetch_place_options = grouped(
    "Place",
    click.option("--city", help="Preset (pittsburgh, durham, austin, phoenix), or your own preset file (.yaml)."),
    *_AREA_OPTIONS,
    shared.workspace_option,
)
"""Options that select a place to be fetched."""

SOURCE_NAMES = tuple(name for name in FetchSettings.model_fields if name not in {"label_map", "scheme", "margin"})
"""Fields of the fetch settings that are options."""

_SPELLINGS = {"labels": "--reference", "label_field": "--class-column"}
FORMER_SOURCES = {"--labels": "--reference", "--label-field": "--class-column"}
"""Former names of options of sources."""

_NETWORK_OPTIONS = (
    click.option("--offline", is_flag=True, help="Use only the cache, and list what is missing."),
    click.option("--refresh", is_flag=True, help="Download cached files again."),
    click.option(
        "--retries",
        type=click.IntRange(0, 20),
        default=5,
        show_default=True,
        help="Number of retries of a failed request.",
    ),
)


def _source_options(**texts: str) -> Callable[[Any], Any]:
    """Return the options of the sources, some with another help."""
    fields = (
        field_option(FetchSettings, name, *filter(None, [_SPELLINGS.get(name)]), help=texts.get(name))
        for name in SOURCE_NAMES
    )
    return grouped("Sources", *fields, *_NETWORK_OPTIONS)


source_options = _source_options()
"""Options of the sources; :func:`make_plan` and :func:`make_network` read their values."""

source_options_with_points = _source_options(
    label_field="Attribute of vector reference labels, and of --points, that holds the class.  "
    "[default: class; of points, otherwise reference]"
)
"""The same where ``--points`` are an option too."""


def make_network(options: dict[str, Any]) -> Network:
    """Return the network client for the options, which are removed from ``options``."""
    from landprior.sources.http.cache import Cache
    from landprior.sources.http.client import Network, RetryPolicy

    return Network(
        Cache(),
        offline=options.pop("offline"),
        refresh=options.pop("refresh"),
        policy=RetryPolicy(attempts=options.pop("retries") + 1),
    )


def make_plan(
    network: Network,
    workspace: Path,
    *,
    city: CityRef | None,
    scheme: ClassScheme | None,
    label_map: dict[int, int] | None,
    options: dict[str, Any],
) -> tuple[FetchPlan, FetchSettings, Workspace]:
    """Return the place, the workspace and the fetch settings given by the shared options."""
    from landprior.errors import ConfigError
    from landprior.landcover.workspace.collection import Workspace
    from landprior.landcover.workspace.layout import plan_fetch
    from landprior.raster.scheme import explain

    given = pick_given({name: options[name] for name in SOURCE_NAMES})
    try:
        settings = FetchSettings(scheme=scheme, label_map=label_map or {}, **given)
    except ValidationError as error:
        raise ConfigError(explain(error, "the options")) from error
    area = find_area(network, city=city, nominatim_url=settings.nominatim_url, options=options)
    place = Workspace(workspace)
    return plan_fetch(area, place, settings, network), settings, place


def find_area(network: Network, *, city: CityRef | None, nominatim_url: str, options: dict[str, Any]) -> Area:
    """Return the place that exactly one of ``--city``, ``--bbox``, ``--place``, ``--aoi`` names."""
    from landprior.sources.areas import area_from_bounds, area_from_city
    from landprior.sources.folder_names import check_name
    from landprior.sources.outlines import area_from_file, area_from_place

    bbox, place, aoi = options["bbox"], options["place"], options["aoi"]
    if sum(value is not None for value in (city, bbox, place, aoi)) != 1:
        msg = "give the place by one of --city, --bbox, --place, --aoi"
        raise click.UsageError(msg)
    name = None if options["name"] is None else check_name(options["name"])
    if city is not None:
        if name is not None:
            msg = "--name is for --bbox, --place and --aoi; a preset has its own name"
            raise click.UsageError(msg)
        return area_from_city(city.preset or city.name)
    if bbox is not None:
        return area_from_bounds(bbox, name=name)
    if aoi is not None:
        return area_from_file(aoi, name=name)
    return area_from_place(place, network, url=nominatim_url, name=name)


def to_be_fetched(workspace: Path, city: CityRef) -> bool:
    """Return whether a city is a preset that was not filled by hand: missing, or fetched (fetch resumes)."""
    from landprior.landcover.workspace.item import TileFolder

    if city.preset is None:
        return False
    images = list((workspace / city.name).glob("*/naip.tif"))
    return not images or any("naip" in TileFolder(path=path.parent, city=city.name).steps() for path in images)


def refuse_sources(ctx: click.Context, city: CityRef, workspace: Path) -> None:
    """Raise an error for options of places and sources if nothing is fetched, as they would be ignored.

    Raises
    ------
    click.UsageError
        If there are any; names the first and the remedy.
    """
    from landprior.landcover.workspace.item import TileFolder

    refuse_options(ctx, "--city; give only one of them", "bbox", "place", "aoi", "name")
    images = list((workspace / city.name).glob("*/naip.tif"))
    if any("naip" in TileFolder(path=path.parent, city=city.name).steps() for path in images):
        how = f"give its location, as when it was fetched (--bbox, --place or --aoi, and --name {city.name})"
    else:
        how = f"it was not fetched, so put your layers into {workspace / city.name}/<tile>/ (labels.tif, nlcd.tif, ...)"
    names = [name for name in SOURCE_NAMES if name != "label_field" or not ctx.params.get("points")]
    refuse_options(ctx, f"the place {city.name} of the workspace: {how}", *names, "refresh", "retries")


def choose_tiles(found: FetchPlan, names: tuple[str, ...]) -> FetchPlan:
    """Return the plan of a fetch for some of its tiles; for all if no names are given.

    Raises
    ------
    MissingInputError
        If there is no such tile; lists the existing ones.
    """
    from landprior.errors import MissingInputError

    there = [tile.folder.name for tile in found.tiles]
    missing = sorted(set(names) - set(there))
    if missing:
        msg = f"there is no tile {', '.join(missing)}; there are: {', '.join(there)}"
        raise MissingInputError(msg)
    return replace(found, tiles=tuple(tile for tile in found.tiles if not names or tile.folder.name in names))


def require_use_of_label_map(tiles: Sequence[TileFolder], label_map: dict[int, int] | None, *, fetched: bool) -> None:
    """Raise an error for a label map that no tile needs.

    Parameters
    ----------
    tiles
        Tiles to be run.
    label_map
        The given label map.
    fetched
        Whether reference labels are given, so that the fetch uses the map.

    Raises
    ------
    InputError
        If no tile has labels, or fetch has converted the labels of all tiles to the scheme's codes.
    """
    from landprior.errors import InputError

    if not label_map or fetched:
        return
    there = [tile for tile in tiles if tile.file("labels").is_file()]
    if not there:
        msg = (
            f"--label-map would have no effect: no tile has labels (there is no {tiles[0].file('labels')}, for example)"
        )
        raise InputError(msg)
    if all(tile.is_recorded("labels") for tile in there):
        msg = (
            f"--label-map would have no effect: fetch has already converted {there[0].file('labels')} to the scheme's "
            "codes; give it with --reference, or leave it out"
        )
        raise InputError(msg)


def fetch_tiles(ctx: click.Context, options: dict[str, Any], steps: Sequence[str]) -> CityRef:
    """Fetch the place given by the options, if the steps include that and it needs fetching; return the place.

    Raises
    ------
    click.UsageError
        If options of sources would be ignored, or no place is given.
    """
    from landprior.landcover.workspace.acquisition import fetch
    from landprior.landcover.workspace.city import CityRef, find_city

    workspace, city = options["workspace"], options["city"]
    ref = None if city is None else find_city(city, workspace)
    if "fetch" not in steps and ref is None:
        msg = "give a place of the workspace with --city; only the step fetch uses --bbox, --place and --aoi"
        raise click.UsageError(msg)
    if ref is not None and not ("fetch" in steps and to_be_fetched(workspace, ref)):
        refuse_sources(ctx, ref, workspace)
        return ref
    network = make_network(options)
    found, settings, place = make_plan(
        network, workspace, city=ref, scheme=options["scheme"], label_map=options["label_map"], options=options
    )
    found = choose_tiles(found, options["tiles"])
    fetch(found, place, settings, network, run=Run(progress=shared.show_progress(ctx)))
    return ref or CityRef(name=found.area.name)
