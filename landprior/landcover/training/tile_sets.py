"""Several tiles trained together: their order, duplicates, and compatibility."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from landprior.errors import InputError, SchemeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from landprior.landcover.training.tiles import Tile


def order_tiles(tiles: Sequence[Tile]) -> list[int]:
    """Return the order in which tiles are trained on: by name, whatever order they are given in.

    Tiles with the same name (from files in different folders) are ordered by content.
    """
    counts = Counter(tile.name for tile in tiles)
    keys = [(tile.name, _digest(tile) if counts[tile.name] > 1 else "") for tile in tiles]
    return sorted(range(len(tiles)), key=keys.__getitem__)


def sort_tiles(tiles: Sequence[Tile]) -> Sequence[Tile]:
    """Return tiles in the order in which they are trained on (:func:`order_tiles`)."""
    return [tiles[index] for index in order_tiles(tiles)]


def find_doubles(tiles: Sequence[Tile]) -> list[str]:
    """Return the names of tiles that occur more than once, by name and content."""
    counts = Counter(tile.name for tile in tiles)
    keys = Counter((tile.name, _digest(tile)) for tile in tiles if counts[tile.name] > 1)
    return sorted(name for (name, _), count in keys.items() if count > 1)


def _digest(tile: Tile) -> str:
    """Return a hash of a tile's content, computed band by band to save memory."""
    sha = hashlib.sha256()
    for values in (tile.image, tile.prior, tile.valid[None], tile.extra):
        for band in () if values is None else values:
            sha.update(repr(tuple(band.shape)).encode() + band.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def require_compatible(tiles: Sequence[Tile]) -> None:
    """Raise an error if tiles cannot share one model.

    Raises
    ------
    InputError
        If bands or classes differ; the message names the two tiles.
    """
    first = tiles[0]
    for tile in tiles[1:]:
        if tile.image.shape[0] != first.image.shape[0]:
            msg = (
                f"{tile.name} has {tile.image.shape[0]} bands and {first.name} has {first.image.shape[0]}; "
                "one model needs the same bands everywhere"
            )
            raise InputError(msg)
        if tile.scheme.names != first.scheme.names:
            msg = f"{tile.name} and {first.name} have priors of different schemes; build them with one --scheme"
            raise SchemeError(msg)
        if (tile.extras, tile.labelled) != (first.extras, first.labelled):
            msg = f"{tile.name} and {first.name} have different inputs or targets; give the same kinds of files for all"
            raise InputError(msg)


def require_inside(tiles: Sequence[Tile], halo: int) -> None:
    """Raise an error if no tile has a usable pixel away from its border, which patches leave out.

    Raises
    ------
    InputError
        If there is none; the message names the tiles.
    """
    inside = slice(halo, -halo) if halo else slice(None)
    if not any(bool(tile.valid[inside, inside].any()) for tile in tiles):
        names = ", ".join(tile.name for tile in tiles[:3]) + (", ..." if len(tiles) > 3 else "")
        what = "label" if tiles[0].labelled else "valid pixel"
        smallest = min((tile.shape for tile in tiles), key=min)
        if min(smallest) <= 2 * halo:
            msg = (
                f"{names}: tiles of {smallest} px have no pixel inside the {halo} px border, which is left out; "
                f"give larger tiles, and --patch-size of {2 * halo + 1} or more"
            )
            raise InputError(msg)
        msg = (
            f"{names} has no {what} more than {halo} px away from its border, so there is nothing to train on; "
            "give a larger image, or check the nodata values of image, prior and labels"
        )
        raise InputError(msg)
