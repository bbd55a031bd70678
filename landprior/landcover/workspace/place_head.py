"""One head for all tiles of a place, fitted to its points, and the models adapted with it.

Each tile or group keeps its own model. The head is in ``adaptation.json`` in the folder of the place, and an adapted
model beside each plain one. A fit reads only windows around the points; what it needs to know of whole tiles, the sums
over their maps, is measured tile by tile and kept in ``item.json``.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from landprior.errors import MissingInputError
from landprior.landcover.adaptation.report import Report  # noqa: TC001 - pydantic reads it
from landprior.landcover.workspace.provenance import (
    Basis,
    Judgement,
    RecordFile,
    explain_changes,
    make_key,
    refuse_foreign,
)
from landprior.landcover.workspace.recipes import adapted_basis, model_basis
from landprior.landcover.workspace.steps import joint_files, must_make, must_write, with_overwrite
from landprior.raster.locks import claiming
from landprior.raster.outputs import replacing
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.workspace.groups import Group
    from landprior.landcover.workspace.item import TileFolder
    from landprior.landcover.workspace.place_points import PlacePoints

ADAPTATION = "adaptation.json"
"""Name of the file with the head, in the folder of a place."""

PATIENCE = 3600.0
"""Seconds to wait for another process that fits the same head or adapts the same model."""


class _Content(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    made: dict[str, Any]
    files: list[str]
    weights: list[list[float]]
    bias: list[float]
    report: Report


@dataclass(frozen=True, eq=False)
class PlaceHead:
    """The head of a place.

    Parameters
    ----------
    path
        Its file.
    files
        Names of the files of points.
    weights, bias
        See :class:`landprior.landcover.training.head.Head`.
    report
        How good maps are at the points.
    made
        What it was made from (:class:`landprior.landcover.workspace.provenance.Basis`).
    """

    path: Path
    files: tuple[str, ...]
    weights: list[list[float]]
    bias: list[float]
    report: Report
    made: Mapping[str, Any]

    def adapt(self, model: LandcoverModel, sums: Sequence[Sequence[float]]) -> LandcoverModel:
        """Return a model of the place with this head.

        Parameters
        ----------
        model
            The model.
        sums
            See :class:`landprior.landcover.adaptation.labelled_pixels.PlaceTile`.

        Returns
        -------
        LandcoverModel
            The adapted model.
        """
        from landprior.landcover.adaptation.adapt import adapted_model, share_head
        from landprior.landcover.adaptation.labelled_pixels import begin_head

        start = begin_head([sums], model.bands)
        fitted = replace(start, weights=np.array(self.weights), bias=np.array(self.bias))
        return adapted_model(model, share_head(fitted, self.report, start), self.files, self.report)


def read_head(folder: Path) -> PlaceHead | None:
    """Return the head of a place, from its folder; None if there is none, or its file is not one or is damaged."""
    try:
        return _parse(folder / ADAPTATION)
    except ValidationError:
        return None


def _parse(path: Path) -> PlaceHead:
    content = _Content.model_validate(_read(path))
    return PlaceHead(path, tuple(content.files), content.weights, content.bias, content.report, content.made)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def head_basis(points: PlacePoints, folder: Path, groups: Sequence[Group] = (), *, command: str = "run") -> Basis:
    """Return everything the head of a place is made from: of the tiles with points, image, prior and model.

    Parameters
    ----------
    points
        The points.
    folder
        Folder of the place.
    groups
        Groups of tiles that share a model.
    command
        Command that is running, for the record.

    Returns
    -------
    Basis
        Basis to compare with the record of the existing head.

    Raises
    ------
    MissingInputError
        If a file is missing.
    """
    inputs = {}
    for tile in points.find_tiles(folder):
        inputs[f"image of {tile.name}"] = tile.require("naip", hint="every tile needs its image")
        inputs[f"prior of {tile.name}"] = tile.require("prior", hint=_hint(tile, "prior"))
        inputs[f"model of {tile.name}"] = find_model(tile, groups)
    return Basis(
        command=command,
        recipe="adapt",
        settings={"column": points.column, "layer": points.layer},
        inputs=inputs,
        values=points.identify(),
    )


def find_model(tile: TileFolder, groups: Sequence[Group] = ()) -> Path:
    """Return the path of the model of a tile or of its group, which must exist.

    Raises
    ------
    MissingInputError
        If it does not.
    """
    group = find_group(tile, groups)
    return tile.require("model", hint=_hint(tile, "model")) if group is None else group.require_model()


def find_group(tile: TileFolder, groups: Sequence[Group]) -> Group | None:
    """Return the group of a tile; None if it has a model of its own."""
    return next((group for group in groups if tile in group.tiles), None)


def _hint(tile: TileFolder, step: str) -> str:
    return f"make it with: landprior run --city {tile.city} --only {step}"


def judge_head(folder: Path, basis: Basis) -> Judgement:
    """Return whether the head of a place is up to date.

    Parameters
    ----------
    folder
        Folder of the place.
    basis
        Everything it would be made from now (:func:`head_basis`).

    Returns
    -------
    Judgement
        The state and the reason.
    """
    path = folder / ADAPTATION
    if not os.path.lexists(path):
        return Judgement("missing")
    made = _read(path).get("made")
    if not isinstance(made, dict):
        return Judgement("foreign", "was not made here by landprior")
    if made.get("key") != basis.key:
        return Judgement("stale", explain_changes(basis, made))
    return Judgement("stale", "it is damaged") if read_head(folder) is None else Judgement("current")


def find_untrained(
    points: PlacePoints, folder: Path, training: TileSettings, groups: Sequence[Group] = ()
) -> TileFolder | None:
    """Return a tile with points whose model, or that of whose group, is missing or stale; None if there is none.

    Parameters
    ----------
    points, folder, groups
        See :func:`head_basis`.
    training
        Settings of the training.

    Returns
    -------
    TileFolder or None
        The first.
    """
    for tile in points.find_tiles(folder):
        group = find_group(tile, groups)
        try:
            if group is None:
                files = joint_files([tile])
                named = {"image": files[f"{tile.id} image"], "prior": files[f"{tile.id} prior"]}
                found = tile.judge("model", model_basis(training, None, "run", named))
            else:
                basis = model_basis(training, None, "run", joint_files(group.tiles))
                found = RecordFile(group.model.with_suffix(".json")).judge(group.model, basis)
        except MissingInputError:
            return tile
        if found.state != "current":
            return tile
    return None


def require_own_head(folder: Path) -> None:
    """Raise an error if a file of the name of the head exists that landprior did not make.

    Raises
    ------
    OutputExistsError
        If there is one.
    """
    found = judge_head(folder, Basis(command="run", recipe="adapt"))
    if found.state == "foreign":
        refuse_foreign(folder / ADAPTATION, found.why)


def ensure_head(
    points: PlacePoints, folder: Path, *, groups: Sequence[Group] = (), command: str = "run", run: Run = Run()
) -> PlaceHead:
    """Fit the head of a place to its points, unless it is current.

    Parameters
    ----------
    points
        The points.
    folder
        Folder of the place.
    groups
        Groups of tiles that share a model.
    command, run
        See :func:`landprior.landcover.workspace.steps.ensure_prior`.

    Returns
    -------
    PlaceHead
        The head.

    Raises
    ------
    OutputExistsError
        If there is a file of its name that landprior did not make.
    LandpriorError
        See :func:`landprior.landcover.adaptation.adapt.fit_head`.
    """
    from landprior.landcover.adaptation.adapt import fit_head
    from landprior.landcover.adaptation.labelled_pixels import PlaceTile
    from landprior.landcover.training.model import load_model

    path = folder / ADAPTATION
    with claiming(path, patience=PATIENCE):
        basis = head_basis(points, folder, groups, command=command)
        if must_write(path, judge_head(folder, basis), overwrite=run.overwrite):
            run = with_overwrite(run)
            tiles = points.find_tiles(folder)
            paths = {tile: find_model(tile, groups) for tile in tiles}
            models = {one: load_model(one) for one in {*paths.values()}}
            places = [
                PlaceTile(
                    image=tile.file("naip"),
                    prior=tile.file("prior"),
                    model=models[paths[tile]],
                    sums=find_sums(tile, paths[tile], models[paths[tile]], run=run),
                )
                for tile in tiles
            ]
            heads, report = fit_head(places, points.files, column=points.column, layer=points.layer, run=run)
            _write(path, basis.record(), [*points.files], heads[0].weights.tolist(), heads[0].bias.tolist(), report)
        return _parse(path)


def _write(
    path: Path,
    made: Mapping[str, Any],
    files: Sequence[str],
    weights: list[list[float]],
    bias: list[float],
    report: Report,
) -> None:
    content = {
        "made": made,
        "files": [Path(file).name for file in files],
        "report": report.to_dict(),
        "weights": weights,
        "bias": bias,
    }
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def find_sums(tile: TileFolder, path: Path, model: LandcoverModel, *, run: Run = Run()) -> Sequence[Sequence[float]]:
    """Return the sums over the tiles of a model: as measured when it was trained on several, else over the tile.

    Those over the tile are measured once, and kept in its item.

    Parameters
    ----------
    tile, path, model
        The tile, and its model, or that of its group.
    run
        Device and progress.

    Returns
    -------
    list of list of float
        See :class:`landprior.landcover.adaptation.labelled_pixels.PlaceTile`.
    """
    from landprior.landcover.adaptation.labelled_pixels import PlaceTile, measure_sums
    from landprior.landcover.training.shares import find_shares

    shares = find_shares(model.record, tile.id)
    if shares is not None:
        return shares
    image, prior = tile.file("naip"), tile.require("prior", hint=_hint(tile, "prior"))
    key = make_key({}, {"image": image, "prior": prior, "model": path})
    known = tile.steps().get("sums", {})
    kept: Any = known.get("sums")
    if known.get("key") == key and np.shape(kept) == (3, len(model.scheme)):
        return kept  # type: ignore[no-any-return]
    sums = measure_sums(PlaceTile(image=image, prior=prior, model=model), run=with_overwrite(run))
    tile.record("sums", key, sums=sums)
    return sums


def ensure_adapted_model(
    tile: TileFolder, head: PlaceHead, *, group: Group | None = None, command: str = "run", run: Run = Run()
) -> Path:
    """Adapt the model of a tile, or of its group, with the head of the place, unless that is current.

    Parameters
    ----------
    tile
        The tile.
    head
        The head of the place.
    group
        Its group.
    command, run
        See :func:`landprior.landcover.workspace.steps.ensure_prior`.

    Returns
    -------
    Path
        Path of the adapted model, beside the plain one.

    Raises
    ------
    OutputExistsError
        If there is one that landprior did not make.
    """
    from landprior.landcover.training.model import load_model, save_model

    plain = find_model(tile, [] if group is None else [group])
    basis = adapted_basis(command, {"model": plain, "points": head.path})
    making = _making_in_group(group, basis, run) if group is not None else _making_in_tile(tile, basis, run)
    with making as target:
        if target is not None:
            model = load_model(plain)
            save_model(head.adapt(model, find_sums(tile, plain, model, run=run)), target, overwrite=True)
    return tile.file("adapted") if group is None else group.adapted


@contextmanager
def _making_in_tile(tile: TileFolder, basis: Basis, run: Run) -> Iterator[Path | None]:
    if not must_make(tile, "adapted", basis, overwrite=run.overwrite):
        yield None
        return
    with tile.making("adapted", basis):
        yield tile.file("adapted")


@contextmanager
def _making_in_group(group: Group, basis: Basis, run: Run) -> Iterator[Path | None]:
    """Claim the model of a group, as its tiles may be mapped side by side."""
    record = RecordFile(group.adapted.with_suffix(".json"))
    with claiming(group.adapted, patience=PATIENCE):
        found = record.judge(group.adapted, basis)
        if found.state == "current" or not must_write(group.adapted, found, overwrite=run.overwrite):
            yield None  # the first tile of the group has adapted it
            return
        with record.making(group.adapted, basis):
            yield group.adapted
