"""Methods that map tiles, called by name in experiments and comparisons."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from landprior.errors import ConfigError
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import predict
from landprior.landcover.training.model import load_model
from landprior.raster.scheme import explain
from landprior.superres.self_epitome import map_by_self_epitome
from landprior.superres.settings import MethodSettings, SelfEpitomeSettings
from landprior.superres.training import train_superres

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landprior.landcover.experiments.runner import MapMethod, Task
    from landprior.run import Run


def _map_by_model(name: str, task: Task, *, run: Run) -> None:
    """Train one model for the tiles and map each with it."""
    fields = {"sr": "counts", "em": "rounds", "epitome": "epitome"}
    method = _validate(MethodSettings, {"name": name, fields[name]: dict(task.options)}, name)
    run = replace(run, overwrite=True)
    if not task.work.is_file():
        matrix = task.matrix
        train_superres(method, task.tiles, task.work, task.settings, matrix=matrix, scheme=matrix.scheme, run=run)
    model = load_model(task.work)
    for tile, output in zip(task.tiles, task.outputs, strict=True):
        predict(tile.image, output, model, options=MapOptions(finish="none"), run=run)


def _map_by_itself(task: Task, *, run: Run) -> None:
    """Map each tile by its own self-similarity."""
    seed = task.settings.training.seed
    chosen = _validate(SelfEpitomeSettings, {"seed": seed, **task.options}, "self-epitome")
    for tile, output in zip(task.tiles, task.outputs, strict=True):
        if tile.nlcd is None:
            msg = f"{tile.image} has no NLCD, which self-epitome needs; add it to the files"
            raise ConfigError(msg)
        map_by_self_epitome(
            tile.image,
            tile.nlcd,
            output,
            scheme=task.matrix.scheme,
            cooccurrence=task.matrix,
            settings=chosen,
            run=replace(run, overwrite=True),
        )


def _validate(kind: Any, values: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any settings
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, f"options of {name}")) from error


RIVALS: Mapping[str, MapMethod] = {
    **{name: partial(_map_by_model, name) for name in ("sr", "em", "epitome")},
    "self-epitome": _map_by_itself,
}
"""Methods by name, as in experiments (``method: rival``) and in ``landprior compare``."""
