"""Real servers on loopback: nginx, MapServer, rustac. If a program is missing, the test is skipped."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import rasterio
from pyproj import Proj

if TYPE_CHECKING:
    from collections.abc import Callable

    from rasterio.io import DatasetReader

START_SECONDS = 20
"""Maximum time in seconds until a server first responds."""

PACKAGES = {
    "nginx": "apt-get install nginx-light",
    "mapserv": "apt-get install cgi-mapserver mapserver-bin",
    "spawn-fcgi": "apt-get install spawn-fcgi",
    "rustac": "pip install rustac",
    "openssl": "apt-get install openssl",
}


def find_program(name: str) -> str:
    """Return the path of a program; skips the test without it."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/lib/cgi-bin"]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{name} is not installed; {PACKAGES[name]}")
    return found


class Servers:
    """Starts and stops servers, each of which has one or more programs, a port and a folder."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._running: dict[str, tuple[Path, list[subprocess.Popen[bytes]]]] = {}

    def _start(self, prepare: Callable[[Path, int], list[list[str]]], probe: str, expected: str) -> str:
        """Start the commands from ``prepare(folder, port)``; return the URL once the probe responds as expected."""
        for _ in range(3):  # another process may take the port first
            folder = self._folders.mktemp("server")
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            programs: list[subprocess.Popen[bytes]] = []
            self._running[url] = (folder, programs)
            environment = {**os.environ, "MAPSERVER_CONFIG_FILE": str(folder / "mapserver.conf")}
            with (folder / "log.txt").open("wb") as log:
                programs.extend(
                    subprocess.Popen(
                        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                    for command in prepare(folder, port)
                )
            until = time.monotonic() + START_SECONDS
            answer = "none"
            while all(program.poll() is None for program in programs) and time.monotonic() < until:
                try:
                    answer = _get(port, probe)
                except (OSError, http.client.HTTPException):
                    answer = "none"
                if expected in answer:
                    return url
                time.sleep(0.02)
            self.stop(url)
        logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.txt")))
        msg = f"{programs[0].args!r} did not come up; its last answer: {answer}; its log: {logs}"
        raise RuntimeError(msg)

    def stop(self, url: str) -> None:
        """Stop a server before the fixture does; its port then refuses connections."""
        _, programs = self._running.pop(_base(url))
        for program in programs:
            program.kill()  # there is nothing to save, and on SIGTERM MapServer would wait for one more request
            program.wait()

    def close(self) -> None:
        """Stop all servers."""
        for url in list(self._running):
            self.stop(url)


def _base(url: str) -> str:
    return "://".join(urlsplit(url)[:2])


def _get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode(errors="replace")
    finally:
        connection.close()


# -- nginx ---------------------------------------------------------------------------------------

NGINX = """\
daemon off; master_process off; pid nginx.pid; error_log nginx.txt;
events {{ worker_connections 256; }}
http {{
    log_format requests escape=json '{{"method":"$request_method","path":"$request_uri","status":$status,'
                                    '"sent":$body_bytes_sent,"range":"$http_range"}}';
    access_log "{folder}/requests.jsonl" requests;
    client_body_temp_path "{folder}/body"; proxy_temp_path "{folder}/proxy"; fastcgi_temp_path "{folder}/fastcgi";
    scgi_temp_path "{folder}/scgi"; uwsgi_temp_path "{folder}/uwsgi";
    types {{ image/tiff tif; application/json json; application/geo+json geojson; text/csv csv; application/gzip gz; }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        location = /.up {{ access_log off; return 200 up; }}
        {location}
    }}
}}
"""


@dataclass(frozen=True)
class Logged:
    """A request in nginx's log: the path with the query, bytes of the body sent, and the Range header or ''."""

    method: str
    path: str
    status: int
    sent: int
    range: str


class NginxServers(Servers):
    """Servers behind nginx."""

    def _nginx(self, home: Path, port: int, location: str) -> list[str]:
        (home / "nginx.conf").write_text(NGINX.format(folder=home, port=port, location=location))
        return [find_program("nginx"), "-p", str(home), "-e", "nginx.txt", "-c", "nginx.conf"]

    def requests(self, url: str) -> list[Logged]:
        """Return the requests to a server so far."""
        # A request is logged after its last byte was sent, so its client may get here first. This nginx handles one
        # request at a time: once it responds to another, the line has been written.
        _get(int(urlsplit(url).port or 80), "/.up")
        lines = (self._running[_base(url)][0] / "requests.jsonl").read_text().splitlines()
        return [Logged(**json.loads(line)) for line in lines]


class FileServers(NginxServers):
    """nginx that serves folders."""

    def __call__(self, folder: Path) -> str:
        """Serve the files of a folder, with ranges; return the base URL."""
        location = f'location / {{ root "{folder.resolve()}"; }}'
        return self._start(lambda home, port: [self._nginx(home, port, location)], "/.up", "up")


# -- MapServer -----------------------------------------------------------------------------------

MAPSERVER = 'CONFIG ENV MS_MAPFILE "{folder}/wcs.map" MS_MAP_PATTERN "." END END\n'

# IMAGEMODE BYTE, NODATA=OFF and NULLVALUE together return the codes unchanged from the file.
MAPFILE = """\
MAP
    NAME "wcs"
    SIZE 100 100
    MAXSIZE 20000
    EXTENT {extent}
    UNITS METERS
    PROJECTION "init=epsg:{epsg}" END
    OUTPUTFORMAT
        NAME "GeoTIFF" DRIVER "GDAL/GTiff" MIMETYPE "image/geotiff" EXTENSION "tif"
        IMAGEMODE BYTE FORMATOPTION "NULLVALUE={nodata}"
    END
    WEB METADATA
        "wcs_label" "landprior tests" "wcs_onlineresource" "http://127.0.0.1:{port}/wcs?" "wcs_enable_request" "*"
    END END
    LAYER
        NAME "{coverage}" TYPE RASTER STATUS ON DATA "{raster}"
        PROJECTION "init=epsg:{epsg}" END
        PROCESSING "RESAMPLE=NEAREST" PROCESSING "NODATA=OFF"
        METADATA
            "wcs_label" "{coverage}" "wcs_formats" "GeoTIFF" "wcs_nativeformat" "GeoTIFF" "wcs_srs" "EPSG:{epsg}"
            "wcs_rangeset_name" "codes" "wcs_rangeset_label" "codes"
        END
    END
END
"""


def epsg_of(src: DatasetReader) -> int:
    """Return a raster's EPSG code or, without one, the common code that gives the same coordinates."""
    if code := src.crs.to_epsg():
        return int(code)
    west, south, east, north = src.bounds
    xs, ys = np.array([west, west, east, east]), np.array([south, north, south, north])
    degrees = Proj(src.crs.to_wkt())(xs, ys, inverse=True)
    for code in (5070, 3857):
        if np.allclose(Proj(f"EPSG:{code}")(*degrees), (xs, ys), rtol=0, atol=0.01):
            return code
    msg = f"{src.name}: neither EPSG:5070 nor EPSG:3857 has the coordinates of {src.crs.to_wkt()}"
    raise ValueError(msg)


class WcsServers(NginxServers):
    """MapServer that serves rasters, as FastCGI behind nginx."""

    def __call__(self, raster: Path, *, coverage: str) -> str:
        """Serve a uint8 raster as WCS 1.0.0 in its own projection; return the URL for ``?SERVICE=...``."""
        with rasterio.open(raster) as src:
            words: dict[str, Any] = {"raster": raster.resolve(), "coverage": coverage, "epsg": epsg_of(src)}
            words |= {"extent": " ".join(map(repr, src.bounds)), "nodata": int(src.nodata or 0)}

        def prepare(home: Path, port: int) -> list[list[str]]:
            (home / "mapserver.conf").write_text(MAPSERVER.format(folder=home))
            (home / "wcs.map").write_text(MAPFILE.format(port=port, **words))
            names = ("QUERY_STRING", "REQUEST_METHOD", "CONTENT_TYPE", "CONTENT_LENGTH", "SERVER_NAME", "SERVER_PORT")
            passed = " ".join(f"fastcgi_param {name} ${name.lower()};" for name in names)
            location = f"location = /wcs {{ fastcgi_pass unix:wcs.sock; {passed} }}"
            mapserver = [find_program("spawn-fcgi"), "-n", "-s", "wcs.sock", "--", find_program("mapserv")]
            return [mapserver, self._nginx(home, port, location)]

        probe = f"/wcs?SERVICE=WCS&VERSION=1.0.0&REQUEST=DescribeCoverage&COVERAGE={coverage}"
        return self._start(prepare, probe, "<CoverageOffering>") + "/wcs"


# -- rustac --------------------------------------------------------------------------------------


class StacServers(Servers):
    """STAC APIs served by rustac."""

    def __call__(self, items: list[dict[str, Any]]) -> str:
        """Serve items, each with its ``collection``; return the root URL."""

        def prepare(home: Path, port: int) -> list[list[str]]:
            (home / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
            return [[find_program("rustac"), "serve", "--addr", f"127.0.0.1:{port}", "items.json"]]

        return self._start(prepare, "/", "stac_version")
