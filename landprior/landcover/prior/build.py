"""Priors: from coarse layers to a belief over classes per pixel, p_i(l) [Rolf et al. 2022, E.1.2].

NLCD codes become probabilities through the cooccurrence matrix and are blurred (both steps are
linear, so remapping first and blurring C classes instead of 16 codes is equivalent); roads and
buildings add to impervious, water layers to water. All widths are metres on the ground.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

import landprior
from landprior.errors import FormerNameWarning, InputError
from landprior.landcover.prior.calibration import Calibration, calibrate
from landprior.landcover.prior.coarse import CoarseLayers
from landprior.landcover.prior.cooccurrence import load_cooccurrence
from landprior.landcover.prior.fusion import PriorModel, require_role
from landprior.landcover.prior.settings import PriorSettings
from landprior.raster.cog import CogWriter, Encoding, encode_probabilities, encoding_options
from landprior.raster.grid import Grid
from landprior.raster.outputs import check_output
from landprior.raster.reading import open_raster
from landprior.raster.windows import Block, grow_window, stream
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from landprior.landcover.prior.cooccurrence import Cooccurrence
    from landprior.landcover.prior.learned import LearnedPrior
    from landprior.landcover.prior.sparse_labels import SparseLabels
    from landprior.landcover.training.model import LandcoverModel
    from landprior.raster.scheme import ClassScheme


logger = logging.getLogger(__name__)


def build_prior(
    nlcd: str | Path,
    output: str | Path,
    *,
    scheme: ClassScheme | None = None,
    cooccurrence: Cooccurrence | None = None,
    layers: Mapping[str, str | Path] | None = None,
    like: str | Path | None = None,
    settings: PriorSettings | None = None,
    pixel_size: float | None = None,
    encoding: Encoding = "float16",
    sparse_labels: SparseLabels | None = None,
    recalibrate: bool = False,
    learned: LandcoverModel | None = None,
    around: Sequence[Mapping[str, Path]] = (),
    run: Run = Run(),
    hints: SparseLabels | None = None,
) -> Path:
    """Build a prior and write it as a COG, window by window.

    Parameters
    ----------
    nlcd
        NLCD raster, original codes.
    output
        The prior to write: one band per class, in the order of the scheme.
    scheme
        The fine classes, if ``cooccurrence`` does not define them.
    cooccurrence
        P(class | code) and the class scheme; by default the matrix that ships with ``scheme``
        (:func:`landprior.landcover.prior.cooccurrence.load_cooccurrence`).
    layers
        Paths of ``roads``, ``buildings``, ``waterways``, ``waterbodies`` rasters: nonzero is presence. Without any:
        the NLCD-only prior.
    like
        Resample everything to this raster's grid (nearest neighbour); by default the NLCD raster's own grid.
    settings
        Filter widths, metres.
    pixel_size
        Metres per pixel, for files that are not georeferenced.
    encoding
        How probabilities are stored.
    sparse_labels
        The user's own labelled points and polygons.
    recalibrate
        Also fit the whole prior's class shares and sharpness to the points
        (:mod:`landprior.landcover.prior.calibration`), which should be a random sample of the place.
    learned
        A learned prior (:func:`landprior.landcover.prior.learned.learn_prior`) that fuses the layers instead of the
        hand-coded rules. Its scheme, layers and filter widths must match those given here.
    around
        Files of neighbouring tiles by layer (``nlcd`` and those of ``layers``), read within reach of the filters
        outside this tile, so that tiles that overlap have the same prior where they do.
    run
        See :class:`landprior.run.Run`.
    hints
        The former name of ``sparse_labels``; it still works, with a warning.

    Returns
    -------
    Path
        The prior's path.

    Raises
    ------
    GridMismatchError
        If the rasters cannot be brought to one grid.
    InputError
        If neither scheme nor matrix is given, or the matrix is for another scheme.
    PriorError
        If a code is unknown, there is no NLCD at all, or a layer's class is missing in the scheme; if the learned
        prior was made for other classes, layers or widths; if no matrix ships with the scheme.
    """
    if hints is not None:
        msg = "build_prior: hints is now called sparse_labels; the old name will stop working in a later release"
        warnings.warn(msg, FormerNameWarning, stacklevel=2)
        sparse_labels = hints
    cooccurrence = _choose_matrix(scheme, cooccurrence)
    target = check_output(output, overwrite=run.overwrite, inputs=(nlcd, like, *(layers or {}).values()), kind="raster")
    with ExitStack() as stack:
        margin = _find_margin(like or nlcd, settings, pixel_size) if around else 0
        found = CoarseLayers(nlcd, layers, like=like, around=around, margin=margin, progress=run.progress)
        coarse = stack.enter_context(found)
        model: PriorModel | LearnedPrior
        if learned is None:
            for name in coarse.names:
                require_role(cooccurrence.scheme, name)
            model = PriorModel.of(coarse, cooccurrence, settings=settings, pixel_size=pixel_size)
        else:
            from landprior.landcover.prior.learned import LearnedPrior, require_match, require_size, settings_of

            require_match(learned, cooccurrence.scheme, coarse.names, settings)
            require_size(learned, coarse.grid, pixel_size, like or nlcd)
            settings = settings or settings_of(learned)
            base = PriorModel.of(coarse, cooccurrence, settings=settings, pixel_size=pixel_size)
            model = LearnedPrior(learned, base, device=run.device)
        calibration = None
        if recalibrate:
            calibration = _calibrate(model, coarse, sparse_labels)
        tags = _tags(cooccurrence, settings or PriorSettings(), coarse.names, encoding, sparse_labels)
        if learned is not None:
            tags["learned"] = learned.digest()
        if calibration is not None:
            tags["calibration"] = json.dumps(calibration.describe())
        writer = stack.enter_context(
            CogWriter(
                target,
                coarse.own,
                count=len(cooccurrence.scheme),
                descriptions=cooccurrence.scheme.names,
                tags=tags,
                overwrite=run.overwrite,
                **encoding_options(encoding),
            )
        )

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            place = coarse.locate(block.core, model.halo)
            prior = model.window(place, *coarse.read(place.outer))
            if calibration is not None:
                prior = calibration.apply(prior)
            if sparse_labels is not None:
                prior = sparse_labels.apply(prior, coarse.grid.window(place.core))
            return {"prior": encode_probabilities(prior, encoding)}

        stream(compute, grid=coarse.own, sinks={"prior": writer}, label="prior", progress=run.progress)
    return target


def find_reach(settings: PriorSettings | None = None) -> float:
    """Return a distance, metres, beyond which nothing has a part in a prior, hand-coded or learned."""
    return 2 * (settings or PriorSettings()).blur_radius + _MORE


_MORE = 25.0
"""Reach of a learned prior, and of the narrow filters, metres."""


def _find_margin(reference: str | Path, settings: PriorSettings | None, pixel_size: float | None) -> int:
    """Return how many pixels around a tile its prior may depend on."""
    with open_raster(reference) as src:
        sides = Grid.of(src).pixel_size(pixel_size, where=reference)
    return math.ceil(find_reach(settings) / min(sides))


def _choose_matrix(scheme: ClassScheme | None, cooccurrence: Cooccurrence | None) -> Cooccurrence:
    """Return the given matrix, or the one that ships with the scheme."""
    if cooccurrence is None and scheme is not None:
        return load_cooccurrence(None, scheme)
    if cooccurrence is None:
        msg = "give the class scheme, or a cooccurrence matrix, which has one"
        raise InputError(msg)
    if scheme is not None and scheme != cooccurrence.scheme:
        msg = f"the cooccurrence matrix is for scheme {cooccurrence.scheme.name!r}, not {scheme.name!r}"
        raise InputError(msg)
    return cooccurrence


def _calibrate(
    model: PriorModel | LearnedPrior, coarse: CoarseLayers, sparse_labels: SparseLabels | None
) -> Calibration:
    """Fit a calibration to the prior at the labelled points; the prior of each is computed in its own window."""
    if sparse_labels is None:
        msg = "recalibration needs labelled points; give them with --points"
        raise InputError(msg)
    rows, columns, classes, shares = sparse_labels.points(coarse.grid)
    if not sparse_labels.designed:
        logger.warning(
            "%s has no strata, unlike points drawn by landprior sample; --recalibrate assumes a simple random "
            "sample of the place",
            sparse_labels.source,
        )
    found = np.full((len(model.scheme), len(rows)), np.nan, dtype=np.float32)
    for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        core = Window(column, row, 1, 1)
        block = Block(core=core, outer=grow_window(core, model.halo, coarse.grid))
        found[:, index] = model.window(block, *coarse.read(block.outer))[:, 0, 0]
    known = ~np.isnan(found[0])
    logger.info("recalibrating with %d points; %d lie where there is no prior", known.sum(), (~known).sum())
    return calibrate(found[:, known], classes[known], shares[known])


def _tags(
    cooccurrence: Cooccurrence,
    settings: PriorSettings,
    layers: Sequence[str],
    encoding: Encoding,
    sparse_labels: SparseLabels | None,
) -> dict[str, str]:
    return {
        "kind": "prior",
        "version": landprior.__version__,
        "scheme": cooccurrence.scheme.model_dump_json(exclude_defaults=True),
        "cooccurrence": cooccurrence.source,
        "layers": ",".join(layers) or "none",
        "settings": settings.model_dump_json(),
        "encoding": encoding,
        "hints": json.dumps(None if sparse_labels is None else sparse_labels.describe()),
    }
