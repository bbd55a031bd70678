"""The notebooks are committed small and tidy, they run, and what they print is correct.

``LANDPRIOR_WRITE_NOTEBOOKS=1 pytest -m slow tests/test_notebooks.py`` writes the outputs of the run into the files.
"""

import json
import os
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def name_of(path):
    return path.stem


def text_of(cells):
    """Return the printed output of code cells, without pictures."""
    outputs = (output for cell in cells for output in cell.get("outputs", ()))
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(part if isinstance(part, str) else "".join(part) for part in parts)


def clean(notebook):
    """Remove what differs between machines: warnings, times."""
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    notebook["metadata"]["language_info"] = {"name": "python"}
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_small_and_tidy(path):
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert len(text) < 200_000  # pictures are small
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # run once, from top to bottom
    assert all(len(cell["source"]) <= 35 for cell in code)
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work|usr)/", text_of(code))
    assert any("image/jpeg" in output.get("data", {}) for cell in code for output in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_pages_that_a_notebook_links_to_exist(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((\.\./[^)#]+)", prose)
    assert links
    assert all((path.parent / link).is_file() for link in links)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs a notebook in an empty folder and returns its printed output."""

    def run(name):
        import nbformat
        from nbclient import NotebookClient

        monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))
        path = REPOSITORY / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
        client.timeout = None
        clean(client.execute())
        if os.environ.get("LANDPRIOR_WRITE_NOTEBOOKS"):
            nbformat.write(notebook, path)
        return text_of(cell for cell in notebook["cells"] if cell["cell_type"] == "code")

    return run


# warnings from the kernel's own packages at start and exit
KERNEL = pytest.mark.filterwarnings("default")


@KERNEL
@pytest.mark.slow
@pytest.mark.needs("nbclient", "ipykernel")
def test_the_losses_fit_into_a_lightning_module_with_torchgeo(run):
    printed = run("losses-with-torchgeo")
    scores = {name: float(score) for name, score in re.findall(r"^(prior|q|r) +(0\.\d{3})$", printed, re.MULTILINE)}
    assert scores["prior"] == pytest.approx(0.655, abs=0.002)
    assert scores["q"] > scores["prior"] + 0.02
    assert scores["r"] > scores["prior"] + 0.02
    assert "{'image': (8, 4, 96, 96), 'prior': (8, 5, 96, 96), 'mask': (8, 96, 96)}" in printed


@KERNEL
@pytest.mark.slow
@pytest.mark.needs("nbclient", "ipykernel")
def test_from_files_to_areas(run):
    printed = run("from-files-to-areas")
    assert "'kept'" in printed
    number = r"(\d+\.\d+)"

    def table(pattern):
        found = re.findall(rf"^(\w+) {pattern}$", printed, re.MULTILINE)
        return {name: tuple(map(float, values)) for name, *values in found}

    counted = table(f" +{number} +{number}")
    assert list(counted) == ["water", "impervious", "barren", "trees", "grass"]
    assert sum(truth for _, truth in counted.values()) == pytest.approx(512 * 512 / 1e4, abs=0.03)
    assert counted["impervious"][0] > 1.15 * counted["impervious"][1]  # which is why pixels are not counted
    estimated = table(f".* {number} ±{number}")
    inside = [abs(estimated[name][0] - truth) <= estimated[name][1] for name, (_, truth) in counted.items()]
    assert sum(inside) >= 4  # intervals of 95 %, one draw
    last = re.search(rf"accuracy: {number}, from points {number} ± {number}", printed)
    accuracy, estimate, margin = map(float, last.groups())
    assert accuracy > 0.78
    assert abs(accuracy - estimate) <= margin
