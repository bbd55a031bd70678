"""``landprior cooccurrence``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.command import Command
from landprior.cli.parameters import INPUT, OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)


@click.command(name="cooccurrence", cls=Command)
@click.argument("nlcd", metavar="[NLCD", type=INPUT, required=False)
@click.argument("labels", metavar="LABELS...]", type=INPUT, nargs=-1)
@shared.pair_option
@shared.scheme_option(help="Classes of the labels.  [default: those in the labels' tags, if landprior wrote them]")
@shared.band_option("NLCD", "--band", "--nlcd-band")
@shared.band_option("the labels", "--labels-band")
@shared.label_map_option
@click.option(
    "--spread",
    is_flag=True,
    help="Also measure how much the 30 m cells of a code differ, for train --method sr.",
)
@click.option("-o", "--output", type=OUTPUT, required=True, help="Matrix to write, a .csv file.")
@shared.overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    nlcd: Path | None,
    labels: tuple[Path, ...],
    pairs: tuple[tuple[Path, Path], ...],
    scheme: ClassScheme | None,
    nlcd_band: int | None,
    labels_band: int | None,
    label_map: dict[int, int] | None,
    spread: bool,
    output: Path,
    overwrite: bool,
) -> None:
    """Measure P(class | NLCD code) where fine labels exist.

    \b
    landprior cooccurrence nlcd.tif labels.tif --scheme chesapeake-4 -o cooc.csv
    landprior cooccurrence nlcd_us.tif tile1_lc.tif tile2_lc.tif --scheme chesapeake-4 -o cooc.csv
    landprior cooccurrence --pair a_nlcd.tif a_lc.tif --pair b_nlcd.tif b_lc.tif --scheme chesapeake-4 -o cooc.csv
    landprior cooccurrence nlcd.tif labels.tif --scheme chesapeake-4 --spread -o cooc.csv

    Use it with: landprior build-prior --cooccurrence cooc.csv. A matrix measured on the place you map
    uses labels of that place; report this with your results.
    """  # noqa: D301
    from landprior.landcover.assessment.scores import scheme_of_map
    from landprior.landcover.prior.cells import measure_spread
    from landprior.landcover.prior.cooccurrence import measure_cooccurrence, write_cooccurrence
    from landprior.raster.names import with_band
    from landprior.raster.outputs import check_output

    if nlcd is not None and not labels:
        msg = "LABELS is missing: give an NLCD raster and one or more label rasters, or --pair NLCD LABELS"
        raise click.UsageError(msg)
    given = [*((nlcd, path) for path in labels if nlcd is not None), *pairs]
    every = [(with_band(coarse, nlcd_band), with_band(fine, labels_band)) for coarse, fine in given]
    if not every:
        msg = "nothing to measure: give NLCD LABELS..., or --pair NLCD LABELS"
        raise click.UsageError(msg)
    check_output(output, overwrite=overwrite, inputs=[path for pair in every for path in pair])
    scheme = scheme or scheme_of_map(every[0][1])
    if output.suffix != ".csv":
        msg = f"-o {output}: a cooccurrence matrix is written as .csv"
        raise click.UsageError(msg)
    measure = measure_spread if spread else measure_cooccurrence
    matrix = measure(every, scheme, label_map=label_map, progress=shared.show_progress(ctx))
    write_cooccurrence(matrix, output, overwrite=overwrite)
    width = max(len(name) for name in scheme.names)
    click.echo(f"{'NLCD':>4} {'pixels':>12}  " + "  ".join(f"{name:>{width}}" for name in scheme.names))
    for code, row in matrix.probabilities.items():
        shares = "  ".join(f"{p:>{width}.3f}" for p in row)
        click.echo(f"{code:>4} {matrix.pixels[code]:>12d}  {shares}")
        if code in matrix.spread:
            deviations = "  ".join(f"{'±' + format(s, '.3f'):>{width}}" for s in matrix.spread[code])
            click.echo(f"{'':>4} {f'{matrix.cells[code]} cells':>12}  {deviations}")
    logger.info("written: %s", output)
    missing = _list_unseen(matrix.probabilities)
    if missing:
        logger.info("NLCD codes without labels here: %s (a prior falls back for them)", ", ".join(map(str, missing)))


def _list_unseen(seen: object) -> list[int]:
    from landprior.raster.scheme import load_scheme

    alaska = {51, 72, 73, 74}
    return [code for code in load_scheme("nlcd").codes.tolist() if code not in seen and code not in alaska]  # type: ignore[operator]
