"""How a call is carried out, whatever it computes: the one value that every stage takes and hands on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a call is carried out.

    A function that needs two or more of these takes a ``Run`` and hands it on whole; one that needs a single field (a
    writer, a check, a progress bar) takes that alone.

    Parameters
    ----------
    device
        Where networks are trained and applied: ``"auto"`` (CUDA if it is there), ``"cpu"`` or ``"cuda"``.
    overwrite
        Replace older results.
    progress
        Show progress bars on stderr.
    nodata
        Value that marks no data in every band of an image, for files that do not say so themselves.
    """

    device: str = "auto"
    overwrite: bool = False
    progress: bool = False
    nodata: float | None = None
