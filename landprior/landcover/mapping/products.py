"""What a map consists of: its raster, probabilities, confidence, style and quick look."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np

import landprior
from landprior.landcover.mapping.mapper import CONFIDENCE_LEVELS, CONFIDENCE_NODATA
from landprior.raster.cog import CogWriter, Encoding, encoding_options
from landprior.raster.outputs import check_outputs, replacing
from landprior.raster.pixels import read_window
from landprior.raster.reading import open_raster
from landprior.raster.scheme import MAP_NODATA
from landprior.raster.sidecars import SIGNATURE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from contextlib import ExitStack

    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme
logger = logging.getLogger(__name__)


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


def check_products(
    output: str | Path, products: Products, *, overwrite: bool, inputs: Iterable[str | Path | None] = ()
) -> Path:
    """Check that a map and its products can be put in place.

    Parameters
    ----------
    output
        The map.
    products
        What lies beside it.
    overwrite, inputs
        See :func:`landprior.raster.outputs.check_output`.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.outputs.check_outputs`.
    """
    target = Path(output)
    rasters, others = [target], list[Path]()
    for path in list_products(target, products):
        (others if path.suffix in (".qml", ".png") else rasters).append(path)
    return check_outputs(rasters, files=others, overwrite=overwrite, inputs=inputs, kind="raster")[0]


def list_products(target: Path, products: Products) -> list[Path]:
    """Return the paths of what is written beside a map."""
    named = (
        (products.probabilities, beside(target, "probabilities")),
        (products.confidence, beside(target, "confidence")),
        (products.style, target.with_suffix(".qml")),
        (products.quicklook, target.with_suffix(".png")),
    )
    return [path for wanted, path in named if wanted]


def map_writer(
    target: Path,
    scheme: ClassScheme,
    grid: Grid,
    tags: Mapping[str, str],
    *,
    overwrite: bool,
    keep: Collection[Path] = (),
) -> CogWriter:
    """Make the writer of a map of classes.

    Parameters
    ----------
    target
        The file to write.
    scheme
        Its classes.
    grid
        Its pixels.
    tags
        Besides ``kind`` and ``version``.
    overwrite
        Replace an older map.
    keep
        Files beside the map that are not to go with an older one, since they are new.

    Returns
    -------
    CogWriter
        255 is no data, overviews are by the most frequent class.
    """
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
        keep=keep,
    )


def open_sinks(
    stack: ExitStack,
    target: Path,
    scheme: ClassScheme,
    grid: Grid,
    products: Products,
    tags: Mapping[str, str],
    *,
    overwrite: bool,
) -> dict[str, CogWriter]:
    """Open the writers of a map and of the rasters beside it.

    Parameters
    ----------
    stack
        Closes them.
    target
        The map.
    scheme, grid, tags, overwrite
        See :func:`map_writer`.
    products
        Which others are wanted.

    Returns
    -------
    dict
        ``map``, and if wanted ``probabilities`` and ``confidence`` -> writer.
    """
    new = list_products(target, products)
    sinks = {"map": map_writer(target, scheme, grid, tags, overwrite=overwrite, keep=new)}
    if products.probabilities:
        sinks["probabilities"] = CogWriter(
            beside(target, "probabilities"),
            grid,
            count=len(scheme),
            descriptions=scheme.names,
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
    """Write a small picture of a map.

    Parameters
    ----------
    source
        The map; its overviews are read.
    path
        The picture to write.
    scheme
        The colours.
    side
        Pixels at most, in either direction; no data is clear.
    """
    from matplotlib.image import imsave

    with open_raster(source) as src:
        shrink = max(1.0, max(src.shape) / side)
        shape = tuple(max(1, round(n / shrink)) for n in src.shape)
        codes = read_window(src, bands=1, shape=shape).astype(np.uint8)
    with replacing(path, overwrite=True) as temporary:
        imsave(temporary, scheme.render(codes), metadata={"Software": SIGNATURE})
