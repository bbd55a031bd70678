"""Execution options of a call, passed as one value through all stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Run:
    """Execution options of a call.

    A function that needs two or more of these accepts a ``Run`` and passes it on; one that needs a single field (a
    writer, a check, a progress bar) accepts only that.

    Parameters
    ----------
    device
        Device for networks: ``"auto"`` (CUDA if available), ``"cpu"`` or ``"cuda"``.
    overwrite
        Replace existing results.
    progress
        Show progress bars on stderr.
    nodata
        Nodata value of every band of an image, for files that have none.
    """

    device: str = "auto"
    overwrite: bool = False
    progress: bool = False
    nodata: float | None = None
