"""Prediction: from a model and an image of any size to a map, streamed.

Windows are read with the network's halo and cut at the edges of the raster, where the network pads as
it does for a whole image, so the result does not depend on the windows. The posterior r needs the
network's class sums over the whole tile [R eq. 3], so it takes a first pass that only sums.
"""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np
import torch

import landprior
from landprior.errors import HarmWarning, InputError, ModelError
from landprior.implicit.networks import OUTPUT_SMOOTHING, log_prior
from landprior.implicit.posterior import log_posterior
from landprior.implicit.training import choose_device
from landprior.landcover.layers import ImageLayer, PriorLayer
from landprior.raster.cog import CogWriter, Encoding, encode_probabilities, encoding_options
from landprior.raster.files import check_output, open_raster, replacing
from landprior.raster.grid import require_same_grid
from landprior.raster.scheme import MAP_NODATA
from landprior.raster.windows import BLOCK, Block, stream

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from landprior.landcover.model import LandcoverModel
    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

CONFIDENCE_LEVELS = 250
"""Confidence 0..1 is stored as 0..250 with the scale in the file; 255 is no data."""

CONFIDENCE_NODATA = 255


@dataclass(frozen=True, kw_only=True)
class Products:
    """What :func:`predict` writes besides the map, and how.

    Parameters
    ----------
    probabilities
        Also write the class probabilities (q, or r with a prior) to ``<stem>_probabilities.tif``.
    confidence
        Also write the largest probability and the normalised entropy, as uint8 with scale 1/250, to
        ``<stem>_confidence.tif``.
    encoding
        Of the probabilities.
    style
        Also write a QGIS style ``<stem>.qml``.
    quicklook
        Also write a picture ``<stem>.png`` of at most 1024 px.
    """

    probabilities: bool = False
    confidence: bool = False
    encoding: Encoding = "float16"
    style: bool = False
    quicklook: bool = False


def predict(
    image: str | Path,
    output: str | Path,
    model: LandcoverModel,
    *,
    posterior: str | Path | None = None,
    prior: str | Path | None = None,
    products: Products | None = None,
    force: bool = False,
    nodata: float | None = None,
    device: str = "auto",
    window_size: int = BLOCK,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Map an image.

    Parameters
    ----------
    image
        Raster with the bands the model was trained on.
    output
        The map: a COG of class codes, 255 where there is no data.
    model
        See :func:`landprior.landcover.model.load_model`.
    posterior
        A prior on the image's grid; the map and probabilities are then of the posterior r [R eq. 3] instead
        of the network's q. Pixels without a prior keep q. If the model's own verdict was that r is worse than
        its prior (:mod:`landprior.landcover.verdict`) the prior is handed back, with a warning and the tag
        ``decision=abstained``. A model of the recipe ``best`` leaves out of r the classes that its verdict found
        made up on the tiles it was trained on (tag ``dropped``).
    prior
        For a model that takes a prior as input (``train --labels --prior``): the prior, on the image's grid. Pixels
        without it have no data in the map.
    products
        What else to write.
    force
        Map r whatever the verdict, with all classes.
    nodata
        See :class:`ImageLayer`.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    window_size
        Side of the windows; changes memory and time, not the result.
    tags
        Further tags for the map.
    overwrite
        Replace older results.
    progress
        Progress bars on stderr.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    ModelError
        If the image has other bands than the model.
    GridMismatchError
        If the prior is on another grid.
    SchemeError
        If the prior has other classes.
    InputError
        If no pixel of the image is valid.
    """
    products = products or Products()
    target = _check_outputs(output, products, overwrite=overwrite)
    takes_prior = _takes_prior(model, prior)
    with ExitStack() as stack:
        pixels = stack.enter_context(ImageLayer(image, nodata=nodata))
        if pixels.bands != model.bands:
            msg = f"{image} has {pixels.bands} bands and the model was trained on {model.bands}; give the same bands"
            raise ModelError(msg)
        belief = None
        if posterior is not None:
            belief = stack.enter_context(PriorLayer(posterior, scheme=model.scheme))
            require_same_grid(pixels.grid, belief.grid, names=(str(image), str(posterior)))
        hint = None
        if prior is not None and takes_prior:
            hint = stack.enter_context(PriorLayer(prior, scheme=model.scheme))
            require_same_grid(pixels.grid, hint.grid, names=(str(image), str(prior)))
        decision = _decide(model, belief, force=force)
        dropped = [] if belief is None or force or decision == "abstained" else _drop(model)
        mapper = Mapper(model, pixels, belief, hint, abstain=decision == "abstained", dropped=dropped, device=device)
        tags = {
            "model": model.digest(),
            "loss": model.loss,
            "maps": "q" if belief is None else "r",
            **({} if decision is None else {"decision": decision}),
            **({"dropped": ",".join(model.scheme.names[index] for index in dropped)} if dropped else {}),
            **(tags or {}),
        }
        sinks = _open_sinks(stack, target, model, pixels.grid, products, tags, overwrite=overwrite)
        options: dict[str, Any] = {"halo": mapper.halo, "size": window_size, "progress": progress}
        if belief is not None and decision != "abstained":
            stream(mapper.gather, grid=pixels.grid, sinks={}, label="class sums", **options)

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            found = mapper.compute(block, sinks)
            if "probabilities" in found:
                values = np.asarray(found["probabilities"], dtype=np.float32)
                found["probabilities"] = encode_probabilities(values, products.encoding)
            return found

        stream(compute, grid=pixels.grid, sinks=sinks, label="map", **options)
        if not mapper.seen:
            msg = f"{image} has no valid pixel; is its nodata value right?"
            raise InputError(msg)
    if products.style:
        write_style(target.with_suffix(".qml"), model.scheme)
    if products.quicklook:
        write_quicklook(target, target.with_suffix(".png"), model.scheme)
    return target


def _check_outputs(output: str | Path, products: Products, *, overwrite: bool) -> Path:
    """Check the side files that no writer checks before it starts."""
    target = check_output(output, overwrite=overwrite)
    for wanted, suffix in ((products.style, ".qml"), (products.quicklook, ".png")):
        if wanted:
            check_output(target.with_suffix(suffix), overwrite=overwrite)
    return target


def _takes_prior(model: LandcoverModel, prior: str | Path | None) -> bool:
    """Say whether a prior is to be read as input, and refuse what does not fit."""
    if model.bands == 0:
        msg = "this model is a learned prior, not a map's; use it with: landprior build-prior --learned"
        raise ModelError(msg)
    wanted = "prior" in model.extras
    if wanted and prior is None:
        msg = "this model was trained on image and prior; give the prior of this image with --prior PRIOR"
        raise ModelError(msg)
    if prior is not None and not wanted:
        msg = "this model takes the image alone; drop --prior (for the posterior r there is --posterior PRIOR)"
        raise ModelError(msg)
    return wanted


def _decide(model: LandcoverModel, belief: PriorLayer | None, *, force: bool) -> str | None:
    """Return ``"kept"``, ``"abstained"`` or ``"forced"`` by the model's verdict; None where it has none to follow."""
    verdict = model.record.get("verdict")
    if verdict is None or verdict["decision"] == "kept":
        return None if verdict is None else "kept"
    if belief is None or force:
        warnings.warn(f"this model was judged worse than its prior ({verdict['why']})", HarmWarning, stacklevel=3)
        return "forced"
    warnings.warn(
        f"this model was judged worse than its prior ({verdict['why']}), so the prior's own classes are mapped; "
        "--force maps the posterior all the same",
        HarmWarning,
        stacklevel=3,
    )
    return "abstained"


def _drop(model: LandcoverModel) -> list[int]:
    """Return the positions of the classes that r leaves out, and say so."""
    if model.dropped:
        names = ", ".join(model.scheme.names[index] for index in model.dropped)
        logger.warning("r leaves out %s, which the training found made up (--force maps all classes)", names)
    return list(model.dropped)


def map_prior(
    prior: str | Path,
    output: str | Path,
    *,
    scheme: ClassScheme | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Map the prior's own most probable class: what one has without training."""
    with PriorLayer(prior, scheme=scheme) as belief:

        def compute(block: Block) -> dict[str, NDArray[np.generic]]:
            shares, valid = belief.read(block.core)
            return {"map": belief.scheme.decode(shares.argmax(0), valid)}

        with _map_writer(Path(output), belief.scheme, belief.grid, tags or {}, overwrite=overwrite) as writer:
            stream(compute, grid=belief.grid, sinks={"map": writer}, label="prior's map", progress=progress)
    return Path(output)


def _map_writer(
    target: Path, scheme: ClassScheme, grid: Grid, tags: Mapping[str, str], *, overwrite: bool
) -> CogWriter:
    return CogWriter(
        target,
        grid,
        nodata=MAP_NODATA,
        overviews="mode",
        scheme=scheme,
        descriptions=["land cover"],
        tags={
            "kind": "map",
            "version": landprior.__version__,
            **tags,
        },
        overwrite=overwrite,
    )


class Mapper:
    """Computes q, and r where there is a prior, of any window of an image.

    Parameters
    ----------
    model, pixels, belief
        The model, the image and, for r, the prior.
    hint
        The prior as the model's input.
    abstain
        Give the prior itself where there is one.
    dropped
        Positions of classes that r leaves out.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """

    def __init__(
        self,
        model: LandcoverModel,
        pixels: ImageLayer,
        belief: PriorLayer | None = None,
        hint: PriorLayer | None = None,
        *,
        abstain: bool = False,
        dropped: Sequence[int] = (),
        device: str = "auto",
    ) -> None:
        self._device = choose_device(device)
        self._network = model.network.to(self._device).to(memory_format=torch.channels_last).eval()
        self._model = model
        self._pixels = pixels
        self._belief = belief
        self._hint = hint
        self._abstain = abstain
        self._dropped = list(dropped)
        self._sums = torch.zeros(len(model.scheme), dtype=torch.float64)
        self.seen = False

    @property
    def halo(self) -> int:
        """How many pixels around a pixel its map depends on."""
        return self._network.halo

    @torch.inference_mode()
    def log_q(self, block: Block) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return log q, shape (1, C, h, w), and validity, (h, w), of a block's core."""
        values, valid = self._pixels.read(block.outer)
        extra = None
        if self._hint is not None:
            shares, believed = self._hint.read(block.outer)
            extra, valid = torch.from_numpy(shares).to(self._device), valid & believed
        rows, columns = block.crop
        inside = valid[rows, columns]
        if not inside.any():  # nothing to compute
            return torch.full((1, len(self._model.scheme), *inside.shape), -np.inf), inside
        x = self._model.statistics.standardise(
            torch.from_numpy(values).to(self._device), torch.from_numpy(valid).to(self._device), extra
        )[None].contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._device.type == "cuda"):
            log_q = self._network(x)
        return log_q[:, :, rows, columns], inside

    def gather(self, block: Block) -> dict[str, NDArray[np.generic]]:
        """Add a block to the class sums."""
        log_q, valid = self.log_q(block)
        if valid.any():
            kept = log_q[0, :, torch.from_numpy(valid).to(log_q.device)]
            self._sums += kept.exp().double().sum(1).cpu()
        return {}

    @torch.inference_mode()
    def compute(self, block: Block, wanted: Container[str] = ("map",)) -> dict[str, NDArray[np.generic]]:
        """Return the products of a block that are wanted: map, probabilities (float32), confidence."""
        log_q, valid = self.log_q(block)
        self.seen |= bool(valid.any())
        scheme = self._model.scheme
        log_p = self._posterior(log_q, block)[0] if valid.any() else log_q[0]
        found: dict[str, NDArray[np.generic]] = {"map": scheme.decode(log_p.argmax(0).cpu().numpy(), valid)}
        if "probabilities" in wanted:
            found["probabilities"] = np.where(valid, log_p.exp().float().cpu().numpy(), np.float32(np.nan))
        if "confidence" in wanted:
            shares = log_p.exp().float()
            entropy = -(shares * log_p.clamp_min(-100)).sum(0) / math.log(len(scheme))
            levels = torch.stack([shares.amax(0), entropy.clamp(0, 1)]).mul(CONFIDENCE_LEVELS).round().cpu().numpy()
            found["confidence"] = np.where(valid, levels, CONFIDENCE_NODATA).astype(np.uint8)
        return found

    def _posterior(self, log_q: Tensor, block: Block) -> Tensor:
        """Return log r where there is a prior, log q elsewhere."""
        if self._belief is None:
            return log_q
        prior, believed = self._belief.read(block.core)
        log_p = log_prior(torch.from_numpy(prior)[None].to(log_q.device), smoothing=OUTPUT_SMOOTHING)
        if self._dropped:
            log_p[:, self._dropped] = -torch.inf
        if self._abstain:
            log_r = log_p.to(log_q.dtype)
        else:
            log_r = log_posterior(log_q, log_p, log_marginal=self.log_marginal.to(log_q.device, log_q.dtype))
        return torch.where(torch.from_numpy(believed).to(log_q.device), log_r, log_q)

    @property
    def log_marginal(self) -> Tensor:
        """Log of the mean prediction over what was gathered, shape (C,)."""
        return torch.log(self._sums / self._sums.sum())


def _open_sinks(
    stack: ExitStack,
    target: Path,
    model: LandcoverModel,
    grid: Grid,
    products: Products,
    tags: Mapping[str, str],
    *,
    overwrite: bool,
) -> dict[str, CogWriter]:
    sinks = {"map": _map_writer(target, model.scheme, grid, tags, overwrite=overwrite)}
    if products.probabilities:
        sinks["probabilities"] = CogWriter(
            beside(target, "probabilities"),
            grid,
            count=len(model.scheme),
            descriptions=model.scheme.names,
            tags={"kind": "probabilities", "encoding": products.encoding, **tags},
            overwrite=overwrite,
            **encoding_options(products.encoding),
        )
    if products.confidence:
        sinks["confidence"] = CogWriter(
            beside(target, "confidence"),
            grid,
            count=2,
            nodata=CONFIDENCE_NODATA,
            scale=1 / CONFIDENCE_LEVELS,
            descriptions=["largest probability", "normalised entropy"],
            tags={"kind": "confidence", **tags},
            overwrite=overwrite,
        )
    return {name: stack.enter_context(sink) for name, sink in sinks.items()}


def beside(target: Path, kind: str) -> Path:
    """Return the path of a further product of a map: ``map.tif`` -> ``map_<kind>.tif``."""
    return target.with_name(f"{target.stem}_{kind}{target.suffix}")


def write_style(path: Path, scheme: ClassScheme) -> None:
    """Write a QGIS style: QGIS loads ``map.qml`` with ``map.tif`` by itself."""
    entries = "".join(
        f'        <paletteEntry value="{c.code}" color="{c.colour.lower()}" alpha="255" label={quoteattr(c.name)}/>\n'
        for c in scheme.classes
    )
    text = (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis styleCategories="Symbology">\n  <pipe>\n'
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">\n'
        f"      <colorPalette>\n{entries}      </colorPalette>\n    </rasterrenderer>\n  </pipe>\n</qgis>\n"
    )
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_quicklook(source: Path, path: Path, scheme: ClassScheme, *, side: int = 1024) -> None:
    """Write a picture of a map, at most ``side`` pixels, no data clear; reads the overviews."""
    from matplotlib.image import imsave

    with open_raster(source) as src:
        shrink = max(1.0, max(src.shape) / side)
        shape = tuple(max(1, round(n / shrink)) for n in src.shape)
        codes = src.read(1, out_shape=shape)
    with replacing(path, overwrite=True) as temporary:
        imsave(temporary, scheme.render(codes))
