"""``landprior density``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from landprior.cli import options as shared
from landprior.cli.checks import refuse_options
from landprior.cli.command import Command, grouped
from landprior.cli.fields import field_option, pick_given
from landprior.cli.maps import make_map_options, map_options
from landprior.cli.parameters import INPUT
from landprior.domains.density.settings import DensitySettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from landprior.domains.density.blocks import BlockLabels
    from landprior.domains.density.images import Images
    from landprior.domains.density.points import Points
    from landprior.run import Run

_NO_COARSE = "--coarse is missing: give the densities to learn from (or --model)"


FIELDS = (
    "loss",
    "warmup",
    "warmup_steps",
    "steps",
    "learning_rate",
    "filters",
    "patch_size",
    "batch_size",
    "normalise",
    "relative",
    "share",
    "jitter",
    "precision",
    "seed",
)
"""Fields of the settings that are options."""

SPELLINGS = {"relative": ("--relative/--absolute",)}


@click.command(name="density", cls=Command, former={"--points": "--reference"})
@click.argument("images", type=INPUT, nargs=-1, required=True)
@grouped(
    "Densities and their prior",
    click.option(
        "--coarse",
        type=INPUT,
        help="CSV image,row,col,class (or count) with the density of each block, counted from 0.",
    ),
    click.option(
        "--block", type=click.IntRange(min=1), default=100, show_default=True, help="Side of a block, pixels."
    ),
    click.option(
        "--classes",
        type=click.IntRange(min=2),
        help="Number of density classes.  [default: those found, or 10 of counts]",
    ),
    click.option(
        "--prior",
        type=INPUT,
        help="CSV class,probability of the target.  [default: 0.05, 0.15 .. 0.95 of ten classes]",
    ),
    click.option("--measure", type=INPUT, metavar="POINTS", help="Points (image,x,y,type) to measure the prior from."),
    click.option(
        "--radius",
        type=click.FloatRange(min=0, min_open=True),
        default=6.0,
        show_default=True,
        help="Target radius, pixels, for --measure.",
    ),
    click.option("--names", default="background,target", show_default=True, help="Names of the two classes."),
)
@grouped("Training", *(field_option(DensitySettings, name, *SPELLINGS.get(name, ())) for name in FIELDS))
@grouped(
    "Map",
    click.option("--model", "model_file", type=INPUT, help="Model to map with, instead of training one."),
    click.option(
        "--blur",
        type=click.IntRange(min=1),
        default=11,
        show_default=True,
        help="Side of the square that predictions are averaged over, pixels; 1 averages nothing.",
    ),
    click.option("--posterior", is_flag=True, help="Map r where density classes are known, instead of q."),
    click.option("--no-maps", is_flag=True, help="Write only the model and the scores, no maps."),
    shared.nodata_option,
)
@map_options(without=("probabilities",))
@grouped(
    "Scores",
    click.option("--reference", "points", type=INPUT, help="CSV image,x,y,type of points to score the maps at."),
    click.option("--positive", multiple=True, help="Type of point that is the target; may be repeated."),
    click.option("--ignore", "ignored", multiple=True, help="Type of point to ignore; may be repeated."),
    click.option(
        "--hold-out",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Share of the images, chosen by a hash of their names, that is held out.",
    ),
)
@shared.folder_option("landprior-density", help="Folder for model, maps and report.")
@shared.run_options("device", "overwrite")
@shared.json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    images: tuple[Path, ...],
    coarse: Path | None,
    block: int,
    classes: int | None,
    prior: Path | None,
    measure: Path | None,
    radius: float,
    names: str,
    blur: int,
    posterior: bool,
    model_file: Path | None,
    points: Path | None,
    positive: tuple[str, ...],
    ignored: tuple[str, ...],
    hold_out: float,
    no_maps: bool,
    output: Path,
    run: Run,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - the options of the training, and the files of the maps
) -> None:
    """Find a target in IMAGES when only a density class of each block is known.

    \b
    landprior density slides/ --coarse blocks.csv -o out
    landprior density slides/ --coarse counts.csv --classes 10 --block 100 --loss ce -o out
    landprior density slides/ --coarse blocks.csv --prior prior.csv --posterior \\
        --reference nuclei.csv --positive inflammatory --ignore unlabelled -o out
    landprior density new.tif --model out/model.safetensors -o new

    One model is trained on all images that have rows in --coarse; the others are mapped too. IMAGES are files or
    folders: JPEG, PNG, TIFF or anything GDAL reads, of any size. Each gets a map of the two classes and one of their
    probabilities. With --reference the areas under the ROC curve are printed, overall and within blocks. If
    interrupted, rerun the same command to resume.
    """  # noqa: D301
    from landprior.domains.density import blocks, project
    from landprior.domains.density.images import draw_held_out, find_images
    from landprior.domains.density.points import read_points
    from landprior.domains.density.training import make_scheme
    from landprior.landcover.mapping.blur import check_side

    _check_options(coarse, model_file, prior, measure, points, positive, posterior=posterior)
    check_side(blur)
    two = [name.strip() for name in names.split(",")]
    if len(two) != 2:
        msg = f"--names needs two names, such as background,target, not {names!r}"
        raise click.UsageError(msg)
    scheme = make_scheme(*two)
    products = make_map_options(ctx, given)
    if no_maps:
        refuse_options(ctx, "--no-maps", "encoding", "confidence", "style", "quicklook")
    settings = _settings(own_prior=bool(prior or measure), **{name: given[name] for name in FIELDS})
    found = find_images(images)
    project.prepare_folder(
        found,
        output,
        inputs=(coarse, prior, measure, points, model_file),
        trains=model_file is None,
        maps=None if no_maps else products,
    )
    labels = None if coarse is None else blocks.read_blocks(coarse, found.grids, block=block, count=classes)
    held = draw_held_out(found.names, hold_out)
    kinds = {"positive": positive, "ignored": ignored}
    scored = None if points is None else read_points(points, found.grids, **kinds)
    if model_file is not None:
        model = project.load_density_model(model_file)
    elif labels is None:  # pragma: no cover - _check_options has seen to it
        raise click.UsageError(_NO_COARSE)
    else:
        trained_on = blocks.without_images(labels, held)
        places = None if measure is None else read_points(measure, found.grids, **kinds)
        model = project.train_or_load(
            found,
            trained_on,
            _find_priors(trained_on, found, prior, places, radius=radius),
            output / project.MODEL,
            settings,
            scheme=scheme,
            run=run,
        )
    maps: list[Path] = []
    if not no_maps:
        maps = project.map_images(
            found,
            found.names,
            model,
            output,
            labels=labels if posterior else None,
            blur=blur,
            options=products,
            run=run,
        )
    rows: list[project.Row] = []
    if scored is not None:
        fitted = set() if labels is None or model_file is not None else set(labels.classes) - held
        rows = project.score_images(
            found,
            scored,
            model,
            labels,
            block=block,
            groups={
                "trained": [name for name in found.names if name in fitted],
                "other": [name for name in found.names if name not in fitted],
            },
            blurs=sorted({1, blur}),
            run=run,
        )
    report = {
        "model": str(model_file or output / project.MODEL),
        "maps": [str(path) for path in maps],
        "density": model.record["density"],
        "scores": [{"images": row.images, "score": row.what, **row.scores.to_dict()} for row in rows],
    }
    project.write_report(output / project.REPORT, report)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    if rows:
        click.echo(project.to_text(rows))
    click.echo(f"{len(maps)} maps, model and report in {output}")


def _check_options(
    coarse: Path | None,
    model_file: Path | None,
    prior: Path | None,
    measure: Path | None,
    points: Path | None,
    positive: tuple[str, ...],
    *,
    posterior: bool,
) -> None:
    """Raise an error for incompatible options.

    Raises
    ------
    click.UsageError
        If there are any; names them.
    """
    wrong = (
        (coarse is None and model_file is None, _NO_COARSE),
        (posterior and coarse is None, "--posterior needs --coarse: r combines q with the density of each block"),
        (prior is not None and measure is not None, "--prior and --measure are mutually exclusive"),
        (
            model_file is not None and (prior is not None or measure is not None),
            "--prior and --measure are for training; the model of --model has its own prior",
        ),
        (bool(points or measure) and not positive, "--positive is missing: the type of the points that are the target"),
    )
    for there, msg in wrong:
        if there:
            raise click.UsageError(msg)


def _find_priors(
    labels: BlockLabels, images: Images, prior: Path | None, places: Mapping[str, Points] | None, *, radius: float
) -> NDArray[np.float64]:
    """Return the probability of the target by density class: read, measured around points, or the paper's."""
    from landprior.domains.density import priors

    if prior is not None:
        return priors.read_priors(prior, labels.count)
    if places is None:
        return priors.spread_priors(labels.count)
    middles = {name: some.places[some.positive] for name, some in places.items()}
    return priors.measure_priors(labels, images.grids, middles, radius=radius)


def _settings(*, own_prior: bool, **given: Any) -> DensitySettings:  # noqa: ANN401 - the fields
    """Return the defaults with the given values; a user's own prior already includes the share of the target.

    Raises
    ------
    click.UsageError
        If values contradict each other.
    """
    from landprior.raster.scheme import explain

    try:
        settings = DensitySettings(**({"share": None} if own_prior else {}) | pick_given(given))
        settings.tile_settings()
    except ValidationError as error:
        raise click.UsageError(explain(error, "the training")) from error
    return settings
