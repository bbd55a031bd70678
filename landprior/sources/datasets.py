"""Published benchmark data sets in torchgeo's layout: downloaded, checked and used in place."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from landprior.errors import InputError, SourceError
from landprior.sources.http.downloads import download
from landprior.sources.http.origins import Origin, Remote

if TYPE_CHECKING:
    from landprior.sources.http.client import Network

logger = logging.getLogger(__name__)

PublishedSet = Literal["enviroatlas", "chesapeake"]
"""EnviroAtlas with the paper's priors (four cities), and Chesapeake Land Cover with its prior extension."""

_PRIOR_LAYER = "prior_from_cooccurrences_101_31_no_osm_no_buildings"


def fetch_dataset(name: str, root: str | Path, network: Network) -> Path:
    """Download a published data set unless it exists; torchgeo unpacks and checks it.

    Parameters
    ----------
    name
        See :data:`PublishedSet`.
    root
        Folder of the data set, in torchgeo's layout.
    network
        Client; interrupted downloads are resumed, and all are checked by their MD5 sum.

    Returns
    -------
    Path
        ``root``, for the ``root`` argument of torchgeo's dataset class.

    Raises
    ------
    SourceError
        If an archive cannot be downloaded, or has the wrong checksum.
    """
    root = Path(root)
    if _is_downloaded(name, root):
        return root
    root.mkdir(parents=True, exist_ok=True)
    origin = Origin(
        name=f"The published set {name}",
        folder="datasets",
        remedy=f"download it by hand into {root} and run the same command again",
    )
    for url, filename, md5 in archives_of(name):
        logger.info("%s -> %s", url.partition("?")[0], root / filename)
        download(network, Remote(url), origin, path=root / filename, md5=md5)
    if not _is_downloaded(name, root):
        msg = f"the archives of {name} in {root} are not complete; delete them and run the same command again"
        raise SourceError(msg)
    return root


def archives_of(name: str) -> list[tuple[str, str, str]]:
    """Return the archives of a published data set from torchgeo's tables: URL, file name, MD5 sum."""
    cls = _class_of(name)
    if name == "enviroatlas":
        return [(cls.url, cls.filename, cls.md5)]
    return [(cls.urls[part], cls.filenames[part], cls.md5s[part]) for part in cls.urls]


def _class_of(name: str) -> Any:  # noqa: ANN401 - torchgeo's
    from torchgeo.datasets import ChesapeakeCVPR, EnviroAtlas

    classes: dict[str, type] = {"enviroatlas": EnviroAtlas, "chesapeake": ChesapeakeCVPR}
    if name not in classes:
        msg = f"{name!r} is not a published data set; choose from: {', '.join(get_args(PublishedSet))}"
        raise InputError(msg)
    return classes[name]


def _is_downloaded(name: str, root: Path) -> bool:
    """Return whether torchgeo's class finds a data set; it unpacks archives it finds."""
    from torchgeo.datasets import DatasetNotFoundError

    cls = _class_of(name)
    options = {"layers": ["naip-new", "lc", _PRIOR_LAYER]} if name == "chesapeake" else {}
    try:
        cls(root=root, download=False, **options)
    except DatasetNotFoundError:
        return False
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        msg = f"an archive of {name} in {root} cannot be used ({reason}); delete it and run the same command again"
        raise SourceError(msg) from error
    return True
