"""Land-cover maps at 1 m without 1 m labels.

Coarse, public layers (30 m NLCD, OpenStreetMap, building footprints) become a prior belief per
pixel; a small network is trained on the place itself against that prior with the
implicit-posterior losses QR and RQ; the map is written as a Cloud-Optimized GeoTIFF.

The package is a library first. Import the module you need:

- :mod:`landprior.implicit`: losses, posterior, networks and the training loop; knows no maps.
- :mod:`landprior.raster`: grids, windows, COG writing and class schemes; knows no networks.
- :mod:`landprior.landcover`: priors, tile training, prediction, evaluation, the whole chain.

Nothing heavy is imported here, so that ``landprior --help`` stays instant.
"""

__version__ = "0.1.0"
