"""Published benchmark sets, as torchgeo's own dataset classes have them: downloaded, checked, used in place."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from landprior.errors import InputError, SourceError
from landprior.sources.network import Origin, Remote

if TYPE_CHECKING:
    from landprior.sources.network import Network

logger = logging.getLogger(__name__)

PublishedSet = Literal["enviroatlas", "chesapeake"]
"""EnviroAtlas with the paper's priors (four cities), and Chesapeake Land Cover with its prior extension."""

_PRIOR_LAYER = "prior_from_cooccurrences_101_31_no_osm_no_buildings"


def fetch_dataset(name: str, root: str | Path, network: Network) -> Path:
    """Download a published set unless it is there, and let torchgeo unpack it and look it through.

    Parameters
    ----------
    name
        See :data:`PublishedSet`.
    root
        Its folder, in torchgeo's layout.
    network
        Downloads go on where they were interrupted, and are checked by their MD5 sum.

    Returns
    -------
    Path
        ``root``: what torchgeo's dataset class takes as ``root``.

    Raises
    ------
    SourceError
        If an archive cannot be had, or is not what was published.
    """
    from torchgeo.datasets import DatasetNotFoundError

    root = Path(root)
    try:
        _open(name, root)
    except DatasetNotFoundError:
        root.mkdir(parents=True, exist_ok=True)
        origin = Origin(
            name=f"The published set {name}",
            folder="datasets",
            remedy=f"download it by hand into {root} and run the same command again",
        )
        for url, filename, md5 in archives_of(name):
            logger.info("%s -> %s", url.partition("?")[0], root / filename)
            network.download(Remote(url), origin, path=root / filename, md5=md5)
        try:
            _open(name, root)
        except (DatasetNotFoundError, zipfile.BadZipFile, OSError) as error:
            msg = f"the archives of {name} in {root} cannot be unpacked ({type(error).__name__}: {error})"
            raise SourceError(msg) from error
    return root


def archives_of(name: str) -> list[tuple[str, str, str]]:
    """Return the archives of a published set by torchgeo's tables: URL, file name, MD5 sum."""
    cls: Any = _class_of(name)
    if name == "enviroatlas":
        return [(cls.url, cls.filename, cls.md5)]
    return [(cls.urls[part], cls.filenames[part], cls.md5s[part]) for part in cls.urls]


def _class_of(name: str) -> type:
    from torchgeo.datasets import ChesapeakeCVPR, EnviroAtlas

    classes: dict[str, type] = {"enviroatlas": EnviroAtlas, "chesapeake": ChesapeakeCVPR}
    if name not in classes:
        msg = f"{name!r} is no published set; there are: {', '.join(get_args(PublishedSet))}"
        raise InputError(msg)
    return classes[name]


def _open(name: str, root: Path) -> object:
    """Open a set with torchgeo's class; it unpacks archives that lie there."""
    if name == "chesapeake":
        return _class_of(name)(root=root, layers=["naip-new", "lc", _PRIOR_LAYER], download=False)
    return _class_of(name)(root=root, download=False)
