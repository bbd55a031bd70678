"""Published sets: archives are downloaded in parts, checked, and unpacked into torchgeo's layout."""

from __future__ import annotations

import hashlib
import zipfile

import geopandas
import pytest
from shapely.geometry import box
from torchgeo.datasets import ChesapeakeCVPR, EnviroAtlas

from landprior.errors import InputError, OfflineError, SourceError
from landprior.sources.datasets import archives_of, fetch_dataset
from landprior.sources.http.cache import Cache
from landprior.sources.http.client import Network, RetryPolicy

QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.2, read_timeout=5.0, grace=1.0)


@pytest.fixture
def network(tmp_path):
    return Network(Cache(tmp_path / "cache"), policy=QUICK)


def write_zip(path, names, folder, index):
    """Write an archive of small text files and folders in the layout that torchgeo expects."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            if name == "spatial_index.geojson":
                archive.writestr(f"{folder}{name}", index)
            else:
                archive.writestr(f"{folder}{name}{'' if '.' in name else '/kept.txt'}", f"{name}\n" * 500)
    return path


def files_of(cls):
    """Return the files that torchgeo looks for, by part; since 0.10 it has a table of them."""
    return cls._files if isinstance(cls._files, dict) else {"base": cls._files}


def make_index(**columns):
    frame = geopandas.GeoDataFrame(
        {name: [value] for name, value in columns.items()}, geometry=[box(0, 0, 9, 9)], crs=3857
    )
    return frame.to_json()


@pytest.fixture
def served(tmp_path, faulty_server, monkeypatch):
    """A server with small versions of both sets, to which torchgeo's classes point."""
    folder = tmp_path / "served"
    folder.mkdir()
    layers = ("naip", "nlcd", "roads", "water", "waterways", "waterbodies", "buildings", "lc")
    index = make_index(split="pittsburgh_pa-2010_1m-train", **{name: f"x_{name}.tif" for name in layers})
    atlas = write_zip(folder / "atlas.zip", files_of(EnviroAtlas)["base"], "enviroatlas_lotp/", index)
    parts = files_of(ChesapeakeCVPR)
    own = {name for part in parts.values() for name in part}
    prior = {name for name in own if "prior" in name}
    index = make_index(split="de-train", lc="x_lc.tif", **{"naip-new": "x_naip-new.tif"})
    base = write_zip(folder / "base.zip", sorted(own - prior), "", index)
    extension = write_zip(folder / "prior.zip", sorted(prior), "", index)
    server = faulty_server(folder)

    def md5(path):
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    monkeypatch.setattr(EnviroAtlas, "url", f"{server.url}/atlas.zip?download=1")
    monkeypatch.setattr(EnviroAtlas, "md5", md5(atlas))
    urls = {"base": f"{server.url}/base.zip", "prior_extension": f"{server.url}/prior.zip?download=1"}
    monkeypatch.setattr(ChesapeakeCVPR, "urls", urls)
    monkeypatch.setattr(ChesapeakeCVPR, "md5s", {"base": md5(base), "prior_extension": md5(extension)})
    return server


def asked(server):
    return [request.path for request in server.requests]


def test_enviroatlas_is_downloaded_and_can_be_opened(served, network, tmp_path):
    root = tmp_path / "data" / "enviroatlas"
    assert fetch_dataset("enviroatlas", root, network) == root
    assert len(EnviroAtlas(root=root, layers=["naip", "lc"]).index) == 1
    text = (root / "enviroatlas_lotp" / "austin_tx-2012_1m-test_tiles-debuffered" / "3009726_sw_a_naip.tif").read_text()
    assert "3009726_sw_a_naip.tif" in text
    assert asked(served) == ["/atlas.zip"]
    assert sorted(path.name for path in root.iterdir() if path.is_file() and path.suffix == ".zip") == [
        "enviroatlas_lotp.zip"
    ]
    assert not list(root.glob("*.part*"))
    fetch_dataset("enviroatlas", str(root), Network(network.cache, offline=True))
    assert asked(served) == ["/atlas.zip"]


def test_chesapeake_has_two_archives_with_the_prior(served, network, tmp_path):
    root = tmp_path / "chesapeake"
    fetch_dataset("chesapeake", root, network)
    layer = "prior_from_cooccurrences_101_31_no_osm_no_buildings"
    assert list(ChesapeakeCVPR(root=root, layers=["naip-new", "lc", layer]).index[layer]) == [f"x_{layer}.tif"]
    assert asked(served) == ["/base.zip", "/prior.zip"]
    fetch_dataset("chesapeake", root, network)
    assert asked(served) == ["/base.zip", "/prior.zip"]


def test_an_interrupted_download_resumes(served, network, tmp_path):
    served.fail("truncate")
    fetch_dataset("enviroatlas", tmp_path / "a", network)
    first, second = served.requests
    size = (tmp_path / "served" / "atlas.zip").stat().st_size
    assert (first.fault, second.headers["Range"]) == ("truncate", f"bytes={size // 2}-")
    assert (tmp_path / "a" / "enviroatlas_lotp.zip").stat().st_size == size


@pytest.mark.usefixtures("served")
def test_an_archive_with_a_wrong_checksum_is_refused(network, tmp_path, monkeypatch):
    monkeypatch.setattr(EnviroAtlas, "md5", "0" * 32)
    root = tmp_path / "a"
    with pytest.raises(
        SourceError, match=r"The published set enviroatlas: .*/atlas\.zip has the wrong checksum .*by hand"
    ):
        fetch_dataset("enviroatlas", root, network)
    assert not list(root.glob("*.zip*"))


def test_archives_copied_by_hand_are_unpacked(served, network, tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    (root / "enviroatlas_lotp.zip").write_bytes((tmp_path / "served" / "atlas.zip").read_bytes())
    fetch_dataset("enviroatlas", root, Network(network.cache, offline=True))
    assert (root / "enviroatlas_lotp" / "spatial_index.geojson").is_file()
    assert asked(served) == []


def test_a_damaged_or_different_archive_is_an_error(served, network, tmp_path):
    whole = (tmp_path / "served" / "atlas.zip").read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive"):
        root = tmp_path / f"a{len(content)}"
        root.mkdir()
        (root / "enviroatlas_lotp.zip").write_bytes(content)
        with pytest.raises(SourceError, match=r"archive of enviroatlas in .* cannot be used \(BadZipFile: .*delete it"):
            fetch_dataset("enviroatlas", root, network)
    root = tmp_path / "other"
    root.mkdir()
    write_zip(root / "enviroatlas_lotp.zip", ["a.txt"], "", "")
    with pytest.raises(SourceError, match=r"an archive of enviroatlas in .* cannot be used .*spatial_index"):
        fetch_dataset("enviroatlas", root, network)
    assert asked(served) == []


def test_missing_sets_offline_and_unknown_sets_are_errors(served, network, tmp_path):
    with pytest.raises(OfflineError, match=r"The published set enviroatlas: .*/atlas\.zip is not in the cache"):
        fetch_dataset("enviroatlas", tmp_path / "a", Network(network.cache, offline=True))
    with pytest.raises(
        InputError, match="'imagenet' is not a published data set; choose from: enviroatlas, chesapeake"
    ):
        fetch_dataset("imagenet", tmp_path / "b", network)
    assert asked(served) == []


def test_the_tables_of_torchgeo_are_as_expected():
    ((url, filename, md5),) = archives_of("enviroatlas")
    assert (url.startswith("https://zenodo.org/"), filename, len(md5)) == (True, "enviroatlas_lotp.zip", 32)
    names = [filename for _, filename, _ in archives_of("chesapeake")]
    assert names == ["cvpr_chesapeake_landcover.zip", "cvpr_chesapeake_landcover_prior_extension.zip"]
