"""Settings of the chain over a workspace."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from landprior.errors import ConfigError
from landprior.landcover.prior.cooccurrence import Cooccurrence, load_cooccurrence
from landprior.landcover.workspace.city import CityRef, find_city
from landprior.raster.scheme import ClassScheme, load_scheme
from landprior.sources.cities import list_cities

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from landprior.landcover.prior.settings import PriorSettings
    from landprior.landcover.training.model import LandcoverModel
    from landprior.landcover.training.settings import TileSettings


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Settings of the chain.

    Parameters
    ----------
    scheme
        The classes.
    cooccurrence
        P(class | NLCD code).
    prior
        Filter widths; None for the paper's, or those of the learned prior.
    learned
        A learned prior that fuses the layers.
    training
        Settings of :func:`landprior.landcover.training.trainer.train_model`; None for its defaults.
    posterior
        Map r (the default) or the network's q.
    label_map
        Codes of ``labels.tif`` -> codes of the scheme.
    joint, group
        Train one model for all tiles, or one for each group of at most ``group`` neighbouring tiles, instead of one
        for each tile.
    """

    scheme: ClassScheme
    cooccurrence: Cooccurrence
    prior: PriorSettings | None = None
    learned: LandcoverModel | None = None
    training: TileSettings | None = None
    posterior: bool = True
    label_map: Mapping[int, int] = field(default_factory=dict)
    joint: bool = False
    group: int | None = None

    @classmethod
    def for_city(
        cls,
        city: str | CityRef,
        *,
        scheme: ClassScheme | None = None,
        cooccurrence: str | Path | None = None,
        **changes: Any,  # noqa: ANN401 - the other fields
    ) -> PipelineSettings:
        """Return the settings of a preset, with the user's own in place of some of them.

        Parameters
        ----------
        city
            A preset, a preset file, or the name of a folder of the workspace.
        scheme
            Scheme to use instead of the preset's.
        cooccurrence
            Matrix to use instead of the preset's; see :func:`landprior.landcover.prior.cooccurrence.load_cooccurrence`.
        **changes
            The other fields.

        Returns
        -------
        PipelineSettings
            The checked settings.

        Raises
        ------
        ConfigError
            If the city is not a preset and no scheme is given.
        """
        found = find_city(city)
        preset = found.preset
        if scheme is None:
            if preset is None:
                near = difflib.get_close_matches(found.name.lower(), list_cities(), n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                msg = (
                    f"{found.name!r} is not a preset ({', '.join(list_cities())}), so its classes are unknown; {hint}"
                    "give --scheme (enviroatlas-5, chesapeake-4 or a YAML file)"
                )
                raise ConfigError(msg)
            scheme = load_scheme(preset.scheme)
        matrix = cooccurrence or (preset.cooccurrence if preset is not None else None)
        return cls(scheme=scheme, cooccurrence=load_cooccurrence(matrix, scheme), **changes)
