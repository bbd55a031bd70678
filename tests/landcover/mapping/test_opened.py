"""Maps as QGIS shows them: PyQGIS belongs to the system's Python, so it is run there."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.products import writing_map

SYSTEM_PYTHON = "/usr/bin/python3"

RASTER = """
import json, sys
from qgis.core import QgsApplication, QgsRasterLayer
app = QgsApplication([], False)
app.initQgis()
layer = QgsRasterLayer(sys.argv[1], "map")
renderer = layer.renderer()
classes = [[c.value, c.label, c.color.name()] for c in renderer.classes()]
print(json.dumps([layer.isValid(), renderer.type(), classes]))
"""


def ask_qgis(script: str, *arguments: object) -> object:
    """Run a script in the system's Python with PyQGIS and return the JSON that it prints."""
    python = shutil.which(SYSTEM_PYTHON)
    call = {"capture_output": True, "text": True, "env": {"QT_QPA_PLATFORM": "offscreen", "HOME": "/tmp"}}  # noqa: S108
    if python is None or subprocess.run([python, "-c", "import qgis.core"], check=False, **call).returncode:
        pytest.skip(f"{SYSTEM_PYTHON} has no PyQGIS (Debian: python3-qgis)")
    found = subprocess.run([python, "-c", script, *map(str, arguments)], check=True, **call)
    return json.loads(found.stdout.strip().splitlines()[-1])


@pytest.mark.integration
def test_qgis_lists_the_classes_of_a_map_and_nothing_else(tmp_path, enviroatlas, make_grid, rng):
    path = tmp_path / "map.tif"
    codes = enviroatlas.codes[rng.integers(0, 5, (40, 50))]
    with writing_map(path, enviroatlas, make_grid(40, 50), MapOptions(), {}, overwrite=False) as sinks:
        sinks["map"].write(np.where(codes == 70, 255, codes).astype(np.uint8))
    valid, kind, classes = ask_qgis(RASTER, path)
    assert (valid, kind) == (True, "paletted")
    assert classes == [[c.code, c.name, c.colour.lower()] for c in enviroatlas.classes]
