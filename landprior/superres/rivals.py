"""Methods that map tiles, called by name in experiments and comparisons."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from landprior.errors import ConfigError
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.model import load_model
from landprior.raster.scheme import explain
from landprior.superres.self_epitome import map_by_self_epitome
from landprior.superres.settings import MethodSettings, SelfEpitomeSettings
from landprior.superres.training import train_superres

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from landprior.landcover.experiments.runner import Rival
    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.landcover.training.files import TrainingTile
    from landprior.landcover.training.settings import TileSettings
    from landprior.run import Run


def _by_model(
    name: str,
    tiles: Sequence[TrainingTile],
    outputs: Sequence[Path],
    work: Path,
    settings: TileSettings,
    *,
    options: Mapping[str, Any],
    matrix: Cooccurrence,
    run: Run,
) -> None:
    """Train one model for the tiles and map each with it."""
    fields = {"sr": "counts", "em": "rounds", "epitome": "epitome"}
    method = _validate(MethodSettings, {"name": name, fields[name]: dict(options)}, name)
    if not work.is_file():
        train_superres(
            method,
            tiles,
            work,
            settings,
            matrix=matrix,
            scheme=matrix.scheme,
            run=replace(run, overwrite=True),
        )
    model = load_model(work)
    for tile, output in zip(tiles, outputs, strict=True):
        predict(tile.image, output, model, run=replace(run, overwrite=True))


def _by_itself(
    tiles: Sequence[TrainingTile],
    outputs: Sequence[Path],
    work: Path,  # noqa: ARG001 - a rival's signature; there is no model
    settings: TileSettings,
    *,
    options: Mapping[str, Any],
    matrix: Cooccurrence,
    run: Run,
) -> None:
    """Map each tile by its own self-similarity."""
    chosen = _validate(SelfEpitomeSettings, {"seed": settings.training.seed, **options}, "self-epitome")
    for tile, output in zip(tiles, outputs, strict=True):
        if tile.nlcd is None:
            msg = f"{tile.image} has no NLCD, which self-epitome needs; add it to the files"
            raise ConfigError(msg)
        map_by_self_epitome(
            tile.image,
            tile.nlcd,
            output,
            scheme=matrix.scheme,
            cooccurrence=matrix,
            settings=chosen,
            run=replace(run, overwrite=True),
        )


def _validate(kind: Any, values: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any settings
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, f"options of {name}")) from error


RIVALS: Mapping[str, Rival] = {
    **{name: partial(_by_model, name) for name in ("sr", "em", "epitome")},
    "self-epitome": _by_itself,
}
"""Methods by name, as in experiments (``method: rival``) and in ``landprior compare``."""
