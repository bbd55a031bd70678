"""The labelled points of a plan, to which the models of its tiles are adapted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from landprior.errors import ConfigError, MissingInputError
from landprior.landcover.workspace.place_head import read_head
from landprior.landcover.workspace.place_points import PlacePoints
from landprior.sources.folder_names import check_component
from landprior.sources.local_files import absolute_source, plain_path

if TYPE_CHECKING:
    from pathlib import Path

    from landprior.landcover.adaptation.report import Report


class PlannedPoints(BaseModel):
    """Labelled points, in files that every worker sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...] = Field(min_length=1, description="absolute paths")
    checksums: tuple[str, ...] = Field(description="of each file")
    tiles: tuple[Annotated[str, AfterValidator(check_component)], ...] = Field(
        min_length=1, description="names of the tiles that hold points"
    )
    count: int = Field(ge=1, description="number of points on the tiles")
    column: str | None = None
    layer: str | None = None

    @model_validator(mode="after")
    def _has_checksums(self) -> PlannedPoints:
        if len(self.files) != len(self.checksums):
            msg = "points: each file needs its checksum"
            raise ValueError(msg)
        return self

    @classmethod
    def of(cls, points: PlacePoints) -> PlannedPoints:
        """Return the points of a place for its plan."""
        return cls(
            files=tuple(absolute_source(file) for file in points.files),
            checksums=_sum_up(points),
            tiles=points.tiles,
            count=points.count,
            column=points.column,
            layer=points.layer,
        )

    def describe(self) -> dict[str, object]:
        """Return what maps depend on, for the plan's hash; the places of the files do not matter."""
        return self.model_dump(mode="json", exclude={"files", "count"})

    def open(self) -> PlacePoints:
        """Return the points for a fit.

        Raises
        ------
        MissingInputError
            If a file does not exist.
        ConfigError
            If one has changed since the plan was made.
        """
        lost = next((file for file in self.files if not plain_path(file).exists()), None)
        if lost is not None:
            msg = f"the points {lost} of the plan do not exist; every worker needs them"
            raise MissingInputError(msg)
        points = self._locate()
        now = zip(self.files, self.checksums, _sum_up(points), strict=True)
        changed = next((file for file, old, new in now if old != new), None)
        if changed is not None:
            msg = f"{changed} has changed since the plan was made; make a new plan"
            raise ConfigError(msg)
        return points

    def _locate(self) -> PlacePoints:
        return PlacePoints(files=self.files, tiles=self.tiles, count=self.count, column=self.column, layer=self.layer)

    def find_report(self, folder: Path) -> Report | None:
        """Return the report of the fit to these points, from the folder of the place; None if there is none yet."""
        head = read_head(folder)
        known = {} if head is None else head.made.get("inputs", {})
        named = self._locate().name_files()
        same = isinstance(known, dict) and [known.get(name) for name in named] == [*self.checksums]
        return head.report if head is not None and same else None


def _sum_up(points: PlacePoints) -> tuple[str, ...]:
    """Return the checksums of the files, as the record of a fit has them."""
    return tuple(hashlib.sha256(text.encode()).hexdigest() for text in points.identify().values())
