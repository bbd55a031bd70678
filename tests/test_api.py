"""The public names: what ``import landprior`` provides, what it imports, and the README's program."""

import ast
import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import landprior
from landprior.cli import main
from landprior.errors import InputError, PriorError

REPOSITORY = Path(__file__).parents[1]
FUNCTIONS = [name for name in landprior.__all__ if name.islower() and name != "losses"]


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(landprior.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for line in block.body for alias in line.names}
    homes = {alias.asname or alias.name: line.module for line in block.body for alias in line.names}
    assert seen == set(landprior.__all__) == set(landprior._HOMES)
    assert homes == landprior._HOMES
    assert landprior.__all__ == sorted(landprior.__all__)
    assert set(landprior.__all__) < set(dir(landprior))


def test_every_public_name_exists_and_has_a_docstring():
    for name in landprior.__all__:
        found = getattr(landprior, name)
        assert inspect.getdoc(found)
        assert landprior.__dict__[name] is found  # kept after the first access
    assert landprior.losses.qr.__module__ == "landprior.implicit.losses"
    assert landprior.train.__module__ == "landprior.landcover.training.files"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'landprior' has no attribute 'tarin'"):
        _ = landprior.tarin


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, landprior; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "rasterio", "pydantic", "pandas", "geopandas", "click", "yaml", "importlib_metadata"}
    assert set(done.stdout.split()) & heavy == set()


def test_a_scheme_loads_without_torch():
    code = "import sys, landprior; landprior.load_scheme('nlcd'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_data_come_first_and_options_by_name(name):
    """Parameters with a default are options, and can only be given by name."""
    for parameter in inspect.signature(getattr(landprior, name)).parameters.values():
        option = parameter.default is not parameter.empty
        assert not option or parameter.kind is parameter.KEYWORD_ONLY, parameter
        assert parameter.annotation is not parameter.empty


@pytest.mark.filterwarnings("ignore::landprior.errors.LandpriorWarning")
@pytest.mark.parametrize("page", ["README.md", "landprior/__init__.py"])
def test_the_program_on_the_page_runs(page, tmp_path, monkeypatch, capsys, make_image, coarse, make_raster, quick):
    """Verbatim, except for a shorter training."""
    text = (REPOSITORY / page).read_text()
    if page.endswith(".md"):
        program = re.search(r"```python\n(import landprior\n.*?)```", text, re.DOTALL)[1]
    else:
        block = re.search(r"    import landprior\n.*?\n\n(?=\w)", text, re.DOTALL)[0]
        program = inspect.cleandoc(block)
    make_image("naip.tif", 60, 70)
    make_raster("nlcd.tif", coarse(60, 70, codes=(11, 41, 21)), overviews="nearest")
    make_raster("labels.tif", np.tile(np.uint8([10, 20, 30, 40, 70, 70, 70]).repeat(10), (60, 1)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(landprior, "train", partial(landprior.train, settings=quick()))
    exec(compile(program, page, "exec"), {})  # noqa: S102 - a page of this repository
    printed = capsys.readouterr().out
    scored = CliRunner().invoke(main, ["-q", "evaluate", "map.tif", "labels.tif", "--scheme", "enviroatlas-5"])
    assert (scored.exit_code, scored.stdout) == (0, printed)


def test_a_prior_needs_a_scheme_or_a_matrix(tmp_path, make_raster, coarse, enviroatlas, chesapeake):
    nlcd = make_raster("nlcd.tif", coarse(40, 50))
    given = landprior.load_cooccurrence(None, enviroatlas)
    landprior.build_prior(nlcd, tmp_path / "a.tif", scheme=enviroatlas)
    landprior.build_prior(nlcd, tmp_path / "b.tif", cooccurrence=given)
    landprior.build_prior(nlcd, tmp_path / "c.tif", scheme=enviroatlas, cooccurrence=given)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes() == (tmp_path / "c.tif").read_bytes()
    with pytest.raises(InputError, match="give the class scheme, or a cooccurrence matrix"):
        landprior.build_prior(nlcd, tmp_path / "d.tif")
    with pytest.raises(InputError, match="is for scheme 'enviroatlas-5', not 'chesapeake-4'"):
        landprior.build_prior(nlcd, tmp_path / "d.tif", scheme=chesapeake, cooccurrence=given)
    with pytest.raises(PriorError, match="no cooccurrence matrix ships for scheme 'mine'"):
        landprior.build_prior(nlcd, tmp_path / "d.tif", scheme=enviroatlas.model_copy(update={"name": "mine"}))
    assert not (tmp_path / "d.tif").exists()
