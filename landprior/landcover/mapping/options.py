"""Output options shared by all methods that make a map."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landprior.raster.cog import Encoding


FinishName: TypeAlias = Literal["none", "edge"]
"""How maps are finished; see :class:`MapOptions`."""

FINISH_WIDTH = 9.0
"""Side of the square in which the filter fits, metres."""


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """What is written with a map, and how.

    Parameters
    ----------
    probabilities
        Also write the class probabilities (q, or r with a prior) to ``<stem>_probabilities.tif``.
    confidence
        Also write the largest probability and the normalised entropy, as uint8 with scale 1/250, to
        ``<stem>_confidence.tif``. For maps by a network.
    encoding
        How probabilities are stored.
    style
        Also write a QGIS style ``<stem>.qml``, with the classes only: without it, QGIS lists 256 colours.
    quicklook
        Also write a picture ``<stem>.png`` of at most 1024 px.
    finish
        ``"edge"``: classes that the training gave up leave r, and probabilities are smoothed along the edges of the
        image (:mod:`landprior.landcover.mapping.finish`); ``"none"``: neither.
    finish_width
        Side of the square that is smoothed over, metres.
    tags
        Further tags for the map and the rasters beside it.
    """

    probabilities: bool = False
    confidence: bool = False
    encoding: Encoding = "float16"
    style: bool = True
    quicklook: bool = False
    finish: FinishName = "edge"
    finish_width: float = FINISH_WIDTH
    tags: Mapping[str, str] = field(default_factory=dict)

    def tagged(self, **tags: str) -> Self:
        """Return a copy with a method's tags added; the caller's own tags win."""
        return replace(self, tags={**tags, **self.tags})

    def describe(self) -> dict[str, Any]:
        """Return the options a map depends on, for the record of how it was made.

        It does not depend on its style, for which version 0.1 recorded False by default.
        """
        found = dict(vars(self)) | {"style": False}
        tags = found.pop("tags")
        if self.finish == "none":  # as version 0.1 described its maps
            del found["finish"], found["finish_width"]
        return {**found, "tags": dict(tags)} if tags else found
