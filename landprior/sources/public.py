"""The default public sources. Imports nothing, so that help is fast."""

from __future__ import annotations

from typing import Literal

STAC_URL = "https://planetarycomputer.microsoft.com/api/stac/v1"
"""Catalogue of NAIP images (Planetary Computer)."""

WCS_URL = "https://dmsdata.cr.usgs.gov/geoserver/mrlc_Land-Cover-Native_conus_year_data/wcs"
COVERAGE = "mrlc_Land-Cover-Native_conus_year_data:Land-Cover-Native_conus_year_data"
"""Annual NLCD of the conterminous United States (USGS, MRLC)."""

OVERPASS_URL = "https://overpass-api.de/api"
NOMINATIM_URL = "https://nominatim.openstreetmap.org/"

INDEX_URL = "https://minedbuildings.z5.web.core.windows.net/global-buildings/dataset-links.csv"
"""Microsoft's index of building footprints."""

RoadWidth = Literal["fixed", "tags"]
"""``fixed``: every road 3 pixels wide, as in the paper. ``tags``: by width, lanes or kind of road."""
