"""Downloading MNIST and CIFAR-10 from torchvision's sources."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from landprior.domains.imagery.formats import CIFAR_CLASSES, find_idx, read_idx
from landprior.domains.imagery.images import assemble_splits
from landprior.errors import InputError, SourceError
from landprior.sources.http.downloads import download
from landprior.sources.http.origins import Origin, Remote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from landprior.domains.imagery.images import ImageSplits
    from landprior.sources.http.client import Network

logger = logging.getLogger(__name__)

Downloadable = Literal["mnist", "cifar10"]


def download_images(name: Downloadable, root: str | Path, network: Network) -> ImageSplits:
    """Download MNIST or CIFAR-10 from torchvision's sources, unless it exists, and read it.

    Parameters
    ----------
    name
        Name of the data set.
    root
        A folder in torchvision's layout (the ``root`` of its dataset classes).
    network
        Client; interrupted downloads are resumed, and all are checked by their MD5 sum.

    Returns
    -------
    ImageSplits
        Training and test images.

    Raises
    ------
    SourceError
        If it cannot be downloaded.
    InputError
        If there is no such data set.
    """
    if name not in get_args(Downloadable):
        msg = f"{name!r} cannot be downloaded; choose from: {', '.join(get_args(Downloadable))}"
        raise InputError(msg)
    return (_download_mnist if name == "mnist" else _download_cifar)(Path(root), network)


def _download_mnist(root: Path, network: Network) -> ImageSplits:
    from torchvision.datasets import MNIST  # type: ignore[import-untyped]

    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    remedy = f"download it by hand into {folder} and run the same command again"
    origin = Origin(name="MNIST", folder="datasets", remedy=remedy)
    for filename, md5 in MNIST.resources:
        if find_idx(folder, filename.removesuffix(".gz").removesuffix("-ubyte")) is not None:
            continue
        for last, mirror in ((mirror == MNIST.mirrors[-1], mirror) for mirror in MNIST.mirrors):
            try:
                logger.info("%s%s -> %s", mirror, filename, folder / filename)
                download(network, Remote(mirror + filename), origin, path=folder / filename, md5=md5)
                break
            except SourceError as error:
                if last:
                    raise
                logger.info("%s; trying the next mirror", error)
    return read_idx(folder)


def _download_cifar(root: Path, network: Network) -> ImageSplits:
    from torchvision.datasets import CIFAR10

    root.mkdir(parents=True, exist_ok=True)
    remedy = f"download it by hand into {root} and run the same command again"
    origin = Origin(name="CIFAR-10", folder="datasets", remedy=remedy)
    if not (root / CIFAR10.base_folder).is_dir():
        logger.info("%s -> %s", CIFAR10.url, root / CIFAR10.filename)
        download(network, Remote(CIFAR10.url), origin, path=root / CIFAR10.filename, md5=CIFAR10.tgz_md5)
    found: list[tuple[str, NDArray[np.generic], NDArray[np.generic]]] = []
    for part in ("train", "test"):
        try:  # torchvision unpacks existing archives, and checks every file before unpickling it
            data = CIFAR10(root, train=part == "train", download=(root / CIFAR10.filename).is_file())
        except (RuntimeError, OSError) as error:
            msg = f"CIFAR-10 in {root} cannot be used ({str(error).splitlines()[0]}); delete it and try again"
            raise SourceError(msg) from error
        found.append((part, data.data.transpose(0, 3, 1, 2), np.array(data.targets)))
    return assemble_splits(found, CIFAR_CLASSES, root)
