"""What a tile's prior, model and map are made from, for the record of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from landprior.inputs import checksum
from landprior.landcover.prior.settings import PriorSettings
from landprior.landcover.workspace.provenance import Basis

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from landprior.landcover.mapping.options import MapOptions
    from landprior.landcover.training.methods import Method
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.settings import PipelineSettings


def prior_basis(
    settings: PipelineSettings,
    command: str,
    inputs: Mapping[str, Path] | None = None,
    values: Mapping[str, str] | None = None,
) -> Basis:
    """Return everything a prior is made from.

    Parameters
    ----------
    settings
        Scheme, matrix, widths, learned prior.
    command
        Command that is running, for the record.
    inputs
        Name -> path of the layers.
    values
        Name -> other value it depends on.

    Returns
    -------
    Basis
        Basis to compare with the record of the existing result.
    """
    matrix = settings.cooccurrence
    made: dict[str, Any] = {
        "scheme": settings.scheme.model_dump(mode="json"),
        "cooccurrence": {code: row.tolist() for code, row in matrix.probabilities.items()},
        "prior": (settings.prior or PriorSettings()).describe(),
    }
    if matrix.pixels:  # they are the weights of the mean row used for codes missing in the matrix
        made["pixels"] = {code: int(count) for code, count in matrix.pixels.items()}
    recipe = "build-prior"
    if settings.learned is not None:
        made["learned"] = settings.learned.digest()
        recipe = f"build-prior --learned (model {made['learned'][:8]})"
    return Basis(command=command, recipe=recipe, settings=made, inputs=inputs or {}, values=values or {})


def model_basis(
    training: TileSettings, method: Method | None, command: str, inputs: Mapping[str, Path] | None = None
) -> Basis:
    """Return everything a model is made from.

    Parameters
    ----------
    training
        The settings.
    method
        Training method, if it is not the loss of the settings.
    command
        Command that is running, for the record.
    inputs
        Name -> path of image, prior and the like.

    Returns
    -------
    Basis
        Basis to compare with the record of the existing result.
    """
    made = training.describe()
    recipe = f"train --recipe {training.recipe}"
    if method is not None:
        made["method"] = method.description
        recipe = f"train --method {method.description['name']}"
    return Basis(command=command, recipe=recipe, settings=made, inputs=inputs or {})


def adapted_basis(command: str, inputs: Mapping[str, Path] | None = None) -> Basis:
    """Return everything an adapted model is made from: the plain model and the head of the place."""
    return Basis(command=command, recipe="adapt to the points of the place", inputs=inputs or {})


def map_basis(
    tile: TileFolder,
    model: Path | None,
    command: str,
    *,
    posterior: bool,
    force: bool,
    options: MapOptions,
    adapted: bool = False,
    computing: Mapping[str, str] | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> Basis:
    """Return everything a map is made from.

    Parameters
    ----------
    tile
        Tile of the map.
    model
        Model, if it is not the tile's own; one in the folder of the place is that of the tile's group.
    command
        Command that is running, for the record.
    posterior, force, options
        See :func:`landprior.landcover.mapping.predict.predict`.
    adapted
        Whether the model is that of the tile, or of its group, adapted to the points of the place.
    computing
        Settings of the computation that the user chose.
    inputs
        Name -> path of image, prior and model.

    Returns
    -------
    Basis
        Basis to compare with the record of the existing result.
    """
    own = tile.file("model")
    recipe = "predict with the tile's own model"
    if model is not None and model.resolve().parent == tile.path.parent.resolve():
        recipe = "predict with the joint model of the place"
    elif model is not None and not adapted and not (own.exists() and model.exists() and model.samefile(own)):
        recipe = f"predict --model {model.name} ({checksum(model)[:8]})"
    made = {"products": options.describe(), "force": force, "posterior": posterior, **(computing or {})}
    replaces: tuple[str, ...] = ()
    if adapted:
        recipe, replaces = f"{recipe}, adapted to points", (recipe,)
    return Basis(command=command, recipe=recipe, settings=made, inputs=inputs or {}, replaces=replaces)
