"""``landprior self-epitome``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.fields import field_option, pick_given
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT, OUTPUT
from landprior.superres.settings import SelfEpitomeSettings

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme
    from landprior.run import Run


@click.command(name="self-epitome", cls=Command)
@click.argument("image", type=INPUT)
@click.option("--nlcd", type=INPUT, required=True, help="NLCD raster with the original codes, on any grid.")
@shared.band_option("NLCD", "--band", "--nlcd-band")
@shared.scheme_option(help="Class scheme: a shipped name or your own YAML file.  [default: chesapeake-4]")
@shared.cooccurrence_option()
@click.option("-o", "--output", type=OUTPUT, required=True, help="Map to write, a Cloud-Optimized GeoTIFF.")
@map_options(without=("confidence",))
@field_option(SelfEpitomeSettings, "shrink")
@field_option(SelfEpitomeSettings, "seed")
@click.option("--published", is_flag=True, help="Use the paper's own procedure, without our improvements.")
@shared.run_options("nodata", "overwrite")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    image: Path,
    nlcd: Path,
    nlcd_band: int | None,
    scheme: ClassScheme | None,
    cooccurrence: Path | None,
    output: Path,
    shrink: int | None,
    seed: int | None,
    published: bool,
    run: Run,
    **options: Any,  # noqa: ANN401 - the files of the map
) -> None:
    """Map a small tile from IMAGE and NLCD by its own self-similarity, without training.

    \b
    landprior self-epitome naip.tif --nlcd nlcd.tif -o map.tif
    landprior self-epitome naip.tif --nlcd nlcd.tif --scheme chesapeake-4 --shrink 2 --probabilities -o map.tif

    Patches of the image are matched with the whole image; the NLCD codes of a patch are counted wherever it matches.
    Time grows with the square of the number of pixels: use tiles of a few hundred pixels a side, or --shrink.
    """  # noqa: D301
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.raster.names import with_band
    from landprior.raster.scheme import load_scheme
    from landprior.superres.self_epitome import map_by_self_epitome

    chosen = scheme or load_scheme("chesapeake-4")
    changes = pick_given({"shrink": shrink, "seed": seed})
    settings = SelfEpitomeSettings.published(**changes) if published else SelfEpitomeSettings(**changes)
    path = map_by_self_epitome(
        image,
        with_band(nlcd, nlcd_band),
        output,
        scheme=chosen,
        cooccurrence=load_cooccurrence(cooccurrence, chosen),
        settings=settings,
        options=make_map_options(ctx, options),
        run=run,
    )
    click.echo(str(path))
