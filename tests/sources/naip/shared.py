"""Helpers for the tests of NAIP: items of a catalogue, images, rasters."""

from __future__ import annotations

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import box, mapping

from landprior.sources.http.client import RetryPolicy
from landprior.sources.http.origins import Remote
from landprior.sources.naip.choose import Choice
from landprior.sources.naip.images import NaipImage

QUICK = RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)


def make_item(name, bounds, year, **changes):
    """An item like those of Planetary Computer."""
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "naip",
        "geometry": mapping(box(*bounds)),
        "bbox": list(bounds),
        "properties": {
            "datetime": f"{year}-06-20T16:00:00Z",
            "gsd": 0.6,
            "naip:year": str(year),
            "naip:state": "va",
            "proj:epsg": 26917,
        },
        "links": [],
        "assets": {"image": {"href": f"https://images.test/naip/{name}.tif?secret=1", "type": "image/tiff"}},
    }
    properties = item["properties"] | changes.pop("properties", {})
    return item | {"properties": properties} | changes


PLACE = box(-80.0, 40.0, -79.9, 40.1)


def make_image(name, bounds, year):
    return NaipImage(id=name, year=year, date="", footprint=box(*bounds), source=Remote(f"https://a.test/{name}"))


def write_tiff(path, values, *, transform, epsg=26917, colors=None, mask=None, **options):
    values = np.asarray(values, dtype=options.pop("dtype", "uint8"))
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    crs = None if epsg is None else CRS.from_epsg(epsg)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **options) as dst,
    ):
        if colors:
            dst.colorinterp = colors
        dst.write(values)
        if mask is not None:
            dst.write_mask(mask)
    return path


AT = Affine(1, 0, 600_000, 0, -1, 4_500_000)


def choose_all(image):
    return Choice(image=image, part=image.footprint)
