"""Results that are always written in one format: their names must end as that format's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from landprior.errors import InputError
from landprior.raster.outputs import check_output

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Named = Literal["model", "plan"]

ENDINGS: dict[Named, str] = {"model": ".safetensors", "plan": ".json"}
"""The ending of what is always written in one format: another promises another."""


def check_named_output(path: str | Path, what: Named, *, overwrite: bool, inputs: Iterable[object] = ()) -> Path:
    """Check, before any work, that a model or a plan can be put at ``path``: its place and its ending.

    Parameters
    ----------
    path, overwrite, inputs
        See :func:`landprior.raster.outputs.check_output`.
    what
        Which of :data:`ENDINGS` its name must have.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    InputError
        If the name ends otherwise.
    """
    target = check_output(path, overwrite=overwrite, inputs=inputs)
    if target.suffix.lower() != ENDINGS[what]:
        ending = ENDINGS[what]
        msg = f"{path} cannot be the name of a {what}: {what}s are written as {ending}; give a name that ends in it"
        raise InputError(msg)
    return target
