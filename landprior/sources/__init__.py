"""Where layers come from: areas of interest now; NAIP, NLCD, OpenStreetMap, buildings and published sets next."""
