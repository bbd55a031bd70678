"""Sources of the layers: areas of interest, NAIP, NLCD, OpenStreetMap, buildings and published data sets."""
