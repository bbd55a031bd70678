"""The files of a map: raster, probabilities, confidence, style and quick look."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from xml.sax.saxutils import quoteattr

import numpy as np

import landprior
from landprior.errors import OutputExistsError
from landprior.landcover.mapping.confidence import CONFIDENCE_LEVELS, CONFIDENCE_NODATA
from landprior.raster.cog import CogWriter, encoding_options
from landprior.raster.outputs import check_outputs, replacing
from landprior.raster.pixels import read_window
from landprior.raster.reading import open_raster
from landprior.raster.scheme import MAP_NODATA
from landprior.raster.sidecars import SIGNATURE, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from landprior.landcover.mapping.options import MapOptions
    from landprior.raster.grid import Grid
    from landprior.raster.scheme import ClassScheme
logger = logging.getLogger(__name__)

Layer = TypeVar("Layer", bound=AbstractContextManager[Any])


@contextmanager
def starting_map(
    output: str | Path,
    options: MapOptions,
    open_source: Callable[[], Layer],
    *,
    overwrite: bool,
    inputs: Iterable[str | Path | None],
) -> Iterator[tuple[Path, Layer]]:
    """Start a map: check that it and its products can be put in place, then open what it is made of.

    Parameters
    ----------
    output, options, overwrite, inputs
        See :func:`check_products`.
    open_source
        Opens the image, or whatever else is mapped.

    Yields
    ------
    tuple
        ``output``, and what was opened.
    """
    target = check_products(output, options, overwrite=overwrite, inputs=inputs)
    with open_source() as source:
        yield target, source


def check_products(
    output: str | Path,
    options: MapOptions,
    *,
    overwrite: bool,
    inputs: Iterable[str | Path | None] = (),
    besides: Iterable[Path] = (),
) -> Path:
    """Check that a map and its products can be written.

    Parameters
    ----------
    output
        The map.
    options
        Which other files are written.
    overwrite, inputs
        See :func:`landprior.raster.outputs.check_output`.
    besides
        Plain files of the same call, such as a model.

    Returns
    -------
    Path
        The map's path.

    Raises
    ------
    LandpriorError
        See :func:`landprior.raster.outputs.check_outputs`; also if the style would replace one made in QGIS.
    """
    target = Path(output)
    style = style_path(target)
    if options.style and overwrite and style.exists() and not is_ours(style):
        msg = f"{style} is not a style by landprior, and is kept; move it away, or give another output path"
        raise OutputExistsError(msg)
    rasters, others = [target], [*besides]
    for path in list_products(target, options):
        (others if path.suffix in (".qml", ".png") else rasters).append(path)
    return check_outputs(rasters, files=others, overwrite=overwrite, inputs=inputs, kind="raster")[0]


def list_products(target: Path, options: MapOptions) -> list[Path]:
    """Return the paths of the files written beside a map."""
    named = (
        (options.probabilities, companion_path(target, "probabilities")),
        (options.confidence, companion_path(target, "confidence")),
        (options.style, style_path(target)),
        (options.quicklook, target.with_suffix(".png")),
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
    """Return the writer of a class map.

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
        Replace an existing map.
    keep
        Files beside the map that must not be removed with an older map, because they are new.

    Returns
    -------
    CogWriter
        255 is no data; overviews use the most frequent class.
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


@contextmanager
def writing_map(
    target: Path,
    scheme: ClassScheme,
    grid: Grid,
    options: MapOptions,
    tags: Mapping[str, str],
    *,
    overwrite: bool,
) -> Iterator[dict[str, CogWriter]]:
    """Open the writers of a map and the rasters beside it; on success, also write the style and quick look.

    Parameters
    ----------
    target
        The map.
    scheme, grid, tags, overwrite
        See :func:`map_writer`.
    options
        Which other files to write, and additional tags.

    Yields
    ------
    dict
        ``map``, and if requested ``probabilities`` and ``confidence`` -> writer.
    """
    tags = {**tags, **options.tags}
    # the old style and picture go with the old map, as the new ones are written last
    new = [path for path in list_products(target, options) if path.suffix == target.suffix]
    sinks = {"map": map_writer(target, scheme, grid, tags, overwrite=overwrite, keep=new)}
    if options.probabilities:
        sinks["probabilities"] = CogWriter(
            companion_path(target, "probabilities"),
            grid,
            count=len(scheme),
            descriptions=scheme.names,
            tags={
                "kind": "probabilities",
                "scheme": scheme.model_dump_json(exclude_defaults=True),
                "encoding": options.encoding,
                **tags,
            },
            overwrite=overwrite,
            **encoding_options(options.encoding),
        )
    if options.confidence:
        sinks["confidence"] = CogWriter(
            companion_path(target, "confidence"),
            grid,
            count=2,
            nodata=CONFIDENCE_NODATA,
            scale=1 / CONFIDENCE_LEVELS,
            descriptions=["largest probability", "normalised entropy"],
            tags={"kind": "confidence", **tags},
            overwrite=overwrite,
        )
    with ExitStack() as stack:
        yield {name: stack.enter_context(sink) for name, sink in sinks.items()}
    if options.style:
        write_style(style_path(target), scheme)
    if options.quicklook:
        write_quicklook(target, target.with_suffix(".png"), scheme)


def companion_path(target: Path, kind: str) -> Path:
    """Return the path of another product of a map: ``map.tif`` -> ``map_<kind>.tif``."""
    return target.with_name(f"{target.stem}_{kind}{target.suffix}")


def style_path(target: Path) -> Path:
    """Return the path of a map's QGIS style, which QGIS loads with it: ``map.tif`` -> ``map.qml``."""
    return target.with_suffix(".qml")


def write_style(path: Path, scheme: ClassScheme) -> None:
    """Write a QGIS style with the classes of a map."""
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


def add_style(target: Path, scheme: ClassScheme, options: MapOptions) -> None:
    """Write the style of a finished map that has none, such as one made by version 0.1.

    Parameters
    ----------
    target
        The map.
    scheme
        Its classes.
    options
        Whether a style is wanted.
    """
    if options.style and not style_path(target).exists():
        write_style(style_path(target), scheme)


def write_quicklook(source: Path, path: Path, scheme: ClassScheme, *, side: int = 1024) -> None:
    """Write a small picture of a map.

    Parameters
    ----------
    source
        The map; it is read from its overviews.
    path
        The picture to write.
    scheme
        The classes and their colours.
    side
        Maximum width and height, pixels; no data is transparent.
    """
    from matplotlib.image import imsave

    with open_raster(source) as src:
        shrink = max(1.0, max(src.shape) / side)
        shape = tuple(max(1, round(n / shrink)) for n in src.shape)
        codes = read_window(src, bands=1, shape=shape).astype(np.uint8)
    with replacing(path, overwrite=True) as temporary:
        imsave(temporary, scheme.render(codes), metadata={"Software": SIGNATURE})
