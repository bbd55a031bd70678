"""``landprior evaluate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import Command, grouped
from landprior.cli.parameters import INPUT, OUTPUT, LabelMapType

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.raster.scheme import ClassScheme


@click.command(
    name="evaluate",
    cls=Command,
    former={"--labels-band": "--reference-band", "--label-column": "--class-column"},
)
@click.argument("map_path", metavar="MAP", type=INPUT)
@click.argument("labels", metavar="REFERENCE", type=INPUT)
@grouped(
    "Codes",
    shared.scheme_option(help="Classes to score in.  [default: the map's own]"),
    shared.band_option("the reference labels", "--band", "--reference-band"),
    shared.band_option("the map", "--map-band"),
    shared.label_map_option,
    click.option(
        "--map-map",
        type=LabelMapType(),
        help='Codes of the map and the codes of the scheme they become, such as "1:10", if it has another scheme.',
    ),
)
@grouped(
    "Pixels to leave out",
    shared.pair_option,
    click.option(
        "--exclude",
        type=INPUT,
        help="Vector file: pixels under its features are left out, such as points used for the prior.",
    ),
    click.option(
        "--exclude-buffer",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="Distance in metres around the excluded features to leave out as well.",
    ),
)
@grouped(
    "Reference points",
    click.option(
        "--class-column", default="reference", show_default=True, help="Column of the points with their class."
    ),
    shared.layer_option,
    shared.pixel_size_option,
)
@grouped(
    "Figure",
    click.option("--figure", type=OUTPUT, help="Picture to write: image, prior, q, r and labels side by side."),
    click.option("--image", type=INPUT, help="Image to show in the figure."),
    click.option("--prior", type=INPUT, help="Prior to show in the figure."),
    click.option("--model", type=INPUT, help="Model whose q and r are shown in the figure."),
)
@shared.json_option
@shared.overwrite_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    map_path: Path,
    labels: Path,
    pairs: tuple[tuple[Path, Path], ...],
    scheme: ClassScheme | None,
    reference_band: int | None,
    map_band: int | None,
    label_map: dict[int, int] | None,
    map_map: dict[int, int] | None,
    exclude: Path | None,
    exclude_buffer: float,
    class_column: str,
    layer: str | None,
    pixel_size: float | None,
    as_json: bool,
    figure: Path | None,
    image: Path | None,
    prior: Path | None,
    model: Path | None,
    overwrite: bool,
) -> None:
    """Score MAP on REFERENCE labels: accuracy, IoU, precision, recall, confusion; or areas, if they are points.

    \b
    landprior evaluate map.tif labels.tif
    landprior evaluate map.tif labels.tif --label-map "0:1,1:2,2:3,3:4" --json
    landprior evaluate a.tif a_labels.tif --pair b.tif b_labels.tif
    landprior evaluate map.tif labels.tif --figure map.png --image naip.tif --prior prior.tif
    landprior evaluate map.tif labels.tif --exclude points.gpkg --exclude-buffer 20
    landprior evaluate map.tif points.gpkg

    Points come from landprior sample and are then interpreted; the estimates are weighted by area and have 95 %
    intervals. Pixels without data in map or labels, and codes that the scheme ignores, do not count. Classes in
    neither map nor labels are listed and left out of the mean IoU.
    """  # noqa: D301 - \b is click's
    from landprior.landcover.assessment.scores import evaluate, refuse_swapped, scheme_of_map
    from landprior.raster.names import with_band
    from landprior.raster.outputs import check_output
    from landprior.sources.labels import is_raster

    if figure is not None:
        sources = (map_path, labels, exclude, image, prior, model, *(path for pair in pairs for path in pair))
        check_output(figure, overwrite=overwrite, inputs=sources)
    for pair in ((map_path, labels), *pairs):
        refuse_swapped(*pair, scheme=scheme is not None)
    if scheme is None:
        scheme = scheme_of_map(map_path)
    map_path = with_band(map_path, map_band)
    if not is_raster(labels):
        refuse_options(
            ctx, "points", "reference_band", "pairs", "exclude", "exclude_buffer", "figure", "image", "prior", "model"
        )
        from landprior.landcover.assessment.estimation import evaluate_points

        found = evaluate_points(
            map_path,
            labels,
            scheme,
            column=class_column,
            layer=layer,
            map_map=map_map,
            label_map=label_map,
            pixel_size=pixel_size,
            progress=shared.show_progress(ctx),
        )
        click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.to_text())
        return
    labels = with_band(labels, reference_band)
    pairs = tuple((with_band(one, map_band), with_band(other, reference_band)) for one, other in pairs)
    refuse_options(ctx, "raster labels, only with points", "class_column", "layer", "pixel_size")
    if figure is None:
        refuse_options(ctx, "scores alone; ask for a picture with --figure", "image", "prior", "model")
    if exclude is None:
        refuse_options(ctx, "a score of all pixels; name what is left out with --exclude", "exclude_buffer")
    scores = evaluate(
        [(map_path, labels), *pairs],
        scheme,
        label_map=label_map,
        map_map=map_map,
        exclude=exclude,
        buffer=exclude_buffer,
        progress=shared.show_progress(ctx),
    )
    if figure is not None:
        from landprior.landcover.assessment.figures import draw_comparison

        draw_comparison(
            figure,
            scheme,
            maps={"map": map_path},
            labels=labels,
            label_map=label_map,
            image=image,
            prior=prior,
            model=model,
            overwrite=overwrite,
        )
        click.echo(f"figure: {figure}", err=True)
    click.echo(json.dumps(scores.to_dict(), indent=2) if as_json else scores.to_text())
