"""``landprior doctor``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys

import click

from landprior import __version__
from landprior.cli import options as shared
from landprior.cli.command import Command

PACKAGES = [
    "torch",
    "torchvision",
    "torchgeo",
    "lightning",
    "rasterio",
    "geopandas",
    "pyogrio",
    "pyproj",
    "shapely",
    "pandas",
    "osmnx",
    "pystac-client",
    "requests",
    "urllib3",
    "mercantile",
    "defusedxml",
    "filelock",
    "platformdirs",
    "affine",
    "psutil",
    "threadpoolctl",
    "pyyaml",
    "numpy",
    "scipy",
    "pydantic",
    "safetensors",
    "pystac",
    "matplotlib",
    "click",
    "exactextract",
    "tqdm",
]
LOW_MEMORY = 4 * 2**30


@click.command(name="doctor", cls=Command)
@shared.json_option
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Check the installation, and explain how to fix problems.

    \b
    landprior doctor
    landprior doctor --json

    The exit status is 1 if a required part is missing or broken.
    """  # noqa: D301
    versions, problems, notes = _packages()
    report: dict[str, object] = {
        "landprior": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cpu_cores": os.cpu_count(),
        **_memory(notes),
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
    }
    report["gdal"] = _gdal(problems)
    report["environment"] = _environment(problems, notes)
    report["cuda"] = _cuda(problems, notes)
    report["torchgeo_fcn"] = _network(problems)
    report["configs"] = _configs(problems)
    report["problems"], report["notes"] = problems, notes
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    ctx.exit(1 if problems else 0)


def _packages() -> tuple[dict[str, str | None], list[str], list[str]]:
    versions: dict[str, str | None] = {}
    problems = []
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
            problems.append(f"{name} is missing: pip install {name}")
    return versions, problems, []


def _memory(notes: list[str]) -> dict[str, float | None]:
    try:
        import psutil
    except ImportError:
        return {"memory_gib": None, "memory_free_gib": None}
    memory = psutil.virtual_memory()
    if memory.available < LOW_MEMORY:
        notes.append("less than 4 GiB of memory is free: train with --filters 16 and map small tiles")
    return {"memory_gib": round(memory.total / 2**30, 1), "memory_free_gib": round(memory.available / 2**30, 1)}


def _gdal(problems: list[str]) -> dict[str, object]:
    try:
        import rasterio
        from rasterio.drivers import raster_driver_extensions

        drivers = set(raster_driver_extensions().values())
        found = {"version": rasterio.__gdal_version__, "geotiff": "GTiff" in drivers}
        with rasterio.Env() as env:
            found["cog"] = "COG" in env.drivers()
        if not found["cog"]:
            problems.append("this GDAL has no COG driver: pip install --upgrade rasterio")
    except ImportError as error:
        problems.append(f"rasterio cannot be imported ({error}): pip install --force-reinstall rasterio")
        return {}
    return found


def _environment(problems: list[str], notes: list[str]) -> dict[str, str]:
    """Return the settings of GDAL and PROJ in use; note those of another installation, and test PROJ."""
    from landprior.cli.terminal import first_line
    from landprior.environment import list_dropped, list_settings

    notes += list_dropped()
    in_use = list_settings()
    notes += [f"{name}={value} is in use" for name, value in in_use.items()]
    try:
        import pyproj
        from rasterio.crs import CRS
        from rasterio.warp import transform

        transform(CRS.from_epsg(4326), CRS.from_epsg(26917), [-81.0], [40.0])
        pyproj.Transformer.from_crs(4326, 26917, always_xy=True).transform(-81.0, 40.0)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        names = ", ".join(in_use) or "PROJ_LIB, PROJ_DATA"
        problems.append(f"PROJ does not work ({first_line(error)}): unset {names}, or reinstall rasterio and pyproj")
    return in_use


def _cuda(problems: list[str], notes: list[str]) -> dict[str, object]:
    try:
        import torch
    except ImportError as error:
        problems.append(f"torch cannot be imported ({error}): pip install torch")
        return {}
    there = torch.cuda.is_available()
    if not there:
        notes.append("no CUDA device: everything runs on the CPU")
        return {"available": False}
    return {
        "available": True,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "memory_gib": [
            round(torch.cuda.get_device_properties(i).total_memory / 2**30, 1) for i in range(torch.cuda.device_count())
        ],
        "bf16": torch.cuda.is_bf16_supported(),
    }


def _network(problems: list[str]) -> bool:
    try:
        from torchgeo.models import FCN  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a mismatched torchvision fails in many ways
        problems.append(
            f"torchgeo's network cannot be imported ({type(error).__name__}: {error}); torch and torchvision must "
            "match: pip install --upgrade torch torchvision torchgeo"
        )
        return False
    return True


def _configs(problems: list[str]) -> dict[str, list[str]]:
    from landprior.errors import LandpriorError
    from landprior.resources import shipped_names

    try:
        return {kind: shipped_names(kind) for kind in ("schemes", "cities")}
    except LandpriorError as error:
        problems.append(str(error))
        return {}


def _show(report: dict[str, object]) -> None:
    click.echo(f"landprior {report['landprior']}   Python {report['python']} ({sys.executable})")
    click.echo(str(report["platform"]))
    click.echo(
        f"{report['cpu_cores']} CPU cores, {report['memory_free_gib']} of {report['memory_gib']} GiB memory free, "
        f"{report['disk_free_gib']} GiB disk free here"
    )
    click.echo(f"GDAL: {report['gdal']}")
    click.echo(f"CUDA: {report['cuda']}")
    packages = report["packages"]
    if isinstance(packages, dict):
        click.echo("packages: " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items()))
    configs = report["configs"]
    if isinstance(configs, dict):
        click.echo("shipped: " + "; ".join(f"{kind} {', '.join(names)}" for kind, names in configs.items()))
    for kind in ("notes", "problems"):
        lines = report[kind]
        if isinstance(lines, list):
            for line in lines:
                click.echo(f"{kind[:-1]}: {line}")
    if not report["problems"]:
        click.echo("no problems found")
