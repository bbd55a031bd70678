"""Land-cover maps at 1 m without 1 m labels.

Coarse, public layers (30 m NLCD, OpenStreetMap, building footprints) become a prior probability per
pixel; a small network is trained on the place itself against that prior with the
implicit-posterior losses QR and RQ; the map is written as a Cloud-Optimized GeoTIFF.

The package is a library first, and the command line calls it. The most common functions are here::

    import landprior

    scheme = landprior.load_scheme("enviroatlas-5")
    landprior.build_prior("nlcd.tif", "prior.tif", scheme=scheme, like="naip.tif")
    model = landprior.train([("naip.tif", "prior.tif")], "model.safetensors")
    landprior.predict("naip.tif", "map.tif", model, posterior="prior.tif")
    print(landprior.evaluate([("map.tif", "labels.tif")], scheme).to_text())

Everything else is in the subpackages:

- :mod:`landprior.implicit`: losses, posterior, networks and the training loop; independent of maps.
- :mod:`landprior.raster`: grids, windows, COG writing and class schemes; independent of networks.
- :mod:`landprior.sources`: NAIP, NLCD, OpenStreetMap, buildings and the user's own files.
- :mod:`landprior.landcover`: priors, tile training, prediction, evaluation, the whole chain.

Nothing heavy is imported here, so that ``landprior --help`` is fast: names are loaded on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landprior.errors import LandpriorError
    from landprior.implicit import losses
    from landprior.landcover.assessment.estimation import evaluate_points
    from landprior.landcover.assessment.sampling import draw_sample
    from landprior.landcover.assessment.scores import evaluate
    from landprior.landcover.mapping.options import MapOptions
    from landprior.landcover.mapping.predict import predict
    from landprior.landcover.prior.build import build_prior
    from landprior.landcover.prior.cooccurrence import load_cooccurrence
    from landprior.landcover.training.files import train_files as train
    from landprior.landcover.training.model import LandcoverModel, load_model
    from landprior.landcover.training.settings import TileSettings
    from landprior.landcover.vectors.zonal import AreaOptions, measure_areas, write_areas
    from landprior.raster.scheme import ClassScheme, load_scheme
    from landprior.run import Run

__all__ = [
    "AreaOptions",
    "ClassScheme",
    "LandcoverModel",
    "LandpriorError",
    "MapOptions",
    "Run",
    "TileSettings",
    "build_prior",
    "draw_sample",
    "evaluate",
    "evaluate_points",
    "load_cooccurrence",
    "load_model",
    "load_scheme",
    "losses",
    "measure_areas",
    "predict",
    "train",
    "write_areas",
]

__version__ = "0.1.0"

_HOMES = {
    "AreaOptions": "landprior.landcover.vectors.zonal",
    "ClassScheme": "landprior.raster.scheme",
    "LandcoverModel": "landprior.landcover.training.model",
    "LandpriorError": "landprior.errors",
    "MapOptions": "landprior.landcover.mapping.options",
    "Run": "landprior.run",
    "TileSettings": "landprior.landcover.training.settings",
    "build_prior": "landprior.landcover.prior.build",
    "draw_sample": "landprior.landcover.assessment.sampling",
    "evaluate": "landprior.landcover.assessment.scores",
    "evaluate_points": "landprior.landcover.assessment.estimation",
    "load_cooccurrence": "landprior.landcover.prior.cooccurrence",
    "load_model": "landprior.landcover.training.model",
    "load_scheme": "landprior.raster.scheme",
    "losses": "landprior.implicit",
    "measure_areas": "landprior.landcover.vectors.zonal",
    "predict": "landprior.landcover.mapping.predict",
    "train": "landprior.landcover.training.files",
    "write_areas": "landprior.landcover.vectors.zonal",
}
_NAMES_THERE = {"train": "train_files"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function, a class or a module
    """Load a public name from its module (PEP 562); the imports above do the same for type checkers."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    there = _NAMES_THERE.get(name, name)
    home = import_module(_HOMES[name])
    found = getattr(home, there) if hasattr(home, there) else import_module(f"{_HOMES[name]}.{there}")
    globals()[name] = found  # found directly next time
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
