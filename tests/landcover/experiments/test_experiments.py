"""Experiments: torchgeo's directories, scoring rules, resuming, the report."""

import json
import warnings

import numpy as np
import pytest
import rasterio
import yaml

from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.landcover.assessment.scores import Scores, evaluate
from landprior.landcover.experiments import runner as runner_module
from landprior.landcover.experiments.config import Experiment, list_experiments, load_experiment
from landprior.landcover.experiments.places import Places
from landprior.landcover.experiments.report import summarise, to_markdown, view_scores, write_report
from landprior.landcover.experiments.results import Result
from landprior.landcover.experiments.runner import Runner
from landprior.landcover.training.model import load_model
from landprior.raster.cog import write_raster
from landprior.raster.grid import Grid
from landprior.records import RESULTS, read_records

from .published import make_chesapeake, make_enviroatlas

pytestmark = pytest.mark.filterwarnings(
    "ignore::landprior.errors.HarmWarning",
    "ignore::landprior.errors.CollapseWarning",
    "ignore::landprior.errors.CooccurrenceWarning",
)

TINY = {"recipe": "default", "steps": 6, "filters": 3, "patch_size": 40, "batch_size": 2}


@pytest.fixture(scope="module")
def enviroatlas_root(tmp_path_factory):
    return make_enviroatlas(tmp_path_factory.mktemp("enviroatlas"))


@pytest.fixture(scope="module")
def chesapeake_root(tmp_path_factory):
    return make_chesapeake(tmp_path_factory.mktemp("chesapeake"))


def small(name, **changes):
    """Return a shipped experiment reduced for a small machine, with tiny learned priors."""
    experiment = load_experiment(name, **{"settings": TINY} | changes)
    content = experiment.model_dump(mode="json")
    for row in content["rows"]:
        row["learned"] |= {"filters": 3, "steps": 3}
    return Experiment.model_validate(content)


# -- torchgeo's directories ------------------------------------------------------------------------


def test_torchgeo_opens_the_same_directories(enviroatlas_root, chesapeake_root):
    """torchgeo's own classes can read the directories of these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torchgeo itself
        from torchgeo.datasets import ChesapeakeCVPR, EnviroAtlas

        cities = EnviroAtlas(enviroatlas_root, splits=["durham_nc-2012_1m-test"], layers=["naip", "prior", "lc"])
        states = ChesapeakeCVPR(chesapeake_root, splits=["ny-test"], layers=["naip-new", "lc"])
        mask = states[states.bounds]["mask"].numpy()
    assert len(cities) == 2
    assert len(states) == 1
    folder = enviroatlas_root / "enviroatlas_lotp"
    own = Places(load_experiment("table-2"), enviroatlas_root, enviroatlas_root).find("durham")
    assert sorted(cities.index["naip"]) == [str(place.image.relative_to(folder)) for place in own]
    (ny,) = Places(load_experiment("table-1"), chesapeake_root, chesapeake_root).find("ny")
    with rasterio.open(ny.labels) as src:
        assert set(np.unique(src.read(1))) <= set(np.unique(mask))


def test_tiles_with_agriculture_are_left_out(enviroatlas_root, tmp_path):
    places = Places(load_experiment("table-2"), enviroatlas_root, tmp_path)
    assert [place.name for place in places.find("austin")] == ["3009726_sw"]
    assert len(places.find("phoenix")) == 2
    everything = load_experiment("table-2").model_dump()
    everything["regions"]["austin"]["leave_out"] = [80, 70]
    with pytest.raises(InputError, match="no tile of austin"):
        Places(Experiment.model_validate(everything), enviroatlas_root, tmp_path).find("austin")


def test_regions_made_of_several_regions(chesapeake_root, tmp_path):
    places = Places(load_experiment("table-1"), chesapeake_root, tmp_path)
    both = places.find("ny+pa")
    assert [place.region for place in both] == ["ny", "pa"]
    assert [place.id for place in both] == [places.find("ny")[0].id, places.find("pa")[0].id]
    assert both[0].prior.name.endswith("no_osm_no_buildings.tif")


def test_missing_data(tmp_path, enviroatlas_root):
    experiment = load_experiment("table-2")
    with pytest.raises(MissingInputError, match="fetch --dataset"):
        Places(experiment, tmp_path / "none", tmp_path)
    with pytest.raises(MissingInputError, match=r"spatial_index\.geojson is missing"):
        Places(experiment, tmp_path, tmp_path).find("durham")
    with pytest.raises(ConfigError, match=r"'durham' has no split 'train' .*test, val5"):
        Places(experiment, enviroatlas_root, tmp_path).find("durham", "train")


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_experiments())
def test_shipped_experiments_are_valid(name):
    experiment = load_experiment(name)
    assert experiment.title
    for row in experiment.rows:
        for region, maps in row.published.items():
            assert region in experiment.columns
            assert {kind.split()[0] for kind in maps} <= set(row.scored_maps)
            assert all(0 < value < 100 for pair in maps.values() for value in pair)


def minimal(**changes):
    return {
        "title": "t",
        "scheme": "enviroatlas-5",
        "data": {"kind": "enviroatlas"},
        "regions": {"a": {"splits": {"test": ["x"]}}},
        "rows": [{"name": "r", "method": "prior"}],
    } | changes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rows": [{"name": "r", "method": "prior"}] * 2}, "different names"),
        (
            {"rows": [{"name": "r", "method": "weak", "init": "HR"}]},
            "starts from 'HR', which is not a supervised row above",
        ),
        ({"rows": [{"name": "r", "method": "supervised"}]}, "give its training tiles"),
        ({"rows": [{"name": "r", "method": "supervised", "train": "b/train"}]}, "'b' is not a region"),
        ({"rows": [{"name": "r", "method": "external"}]}, "give the paths of its maps"),
        ({"rows": [{"name": "r", "method": "prior", "published": {"b": {}}}]}, "'b' is not a region"),
        ({"data": {"kind": "files"}}, "layers .* must be given for kind: files, and only there"),
        ({"views": ["merged"]}, "need merge"),
        ({"rows": [{"name": "r", "method": "weak", "maps": ["q", "prior"]}]}, "a row of method weak has the maps q, r"),
        ({"rows": [{"name": "r", "method": "weak", "train": "a/x"}]}, "train is for rows of method supervised"),
        ({"rows": [{"name": "r", "method": "weak", "inputs": ["image", "prior"]}]}, "inputs are for rows of method"),
        ({"rows": [{"name": "r", "method": "supervised", "train": "others", "loss": "rq"}]}, "rq is for priors"),
        (
            {"rows": [{"name": "r", "method": "external", "path": "{name}.tif"}]},
            "may contain only {region}, {split} and",
        ),
        ({"rows": [{"name": "r", "method": "weak", "init": "r"}]}, "not a supervised row above"),
        ({"data": {"kind": "files", "layers": {"image": "i.tif"}}}, "layers need labels"),
        (
            {"data": {"kind": "files", "layers": {"image": "{tile}.tif", "labels": "l.tif"}}},
            "may contain no placeholder other than {split}",
        ),
        ({"regions": {"a": {"splits": {"test": ["x"]}, "measure": ["test"]}}}, "measured on the tiles that are scored"),
        (
            {"rows": [{"name": "r", "method": "weak", "tune": {"region": "a", "rates": [1e-2, 1e-3]}}]},
            "chosen on tiles that are scored",
        ),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_invalid_configurations(tmp_path, changes, text):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(minimal(**changes)))
    with pytest.raises(ConfigError, match=text):
        load_experiment(path)


def test_a_selection_keeps_the_regions_that_a_row_starts_from():
    some = load_experiment("table-2").select(rows=["QR from Pittsburgh"], regions=["durham"])
    assert [row.name for row in some.rows] == ["HR", "QR from Pittsburgh"]
    assert some.columns == ("durham",)
    assert set(some.others("durham")) == {"pittsburgh", "austin", "phoenix"}  # the same as in the whole table
    with pytest.raises(ConfigError, match="'QQ' is not a row"):
        load_experiment("table-2").select(rows=["QQ"])
    with pytest.raises(ConfigError, match="'boston' is not a region"):
        load_experiment("table-2").select(regions=["boston"])


def test_another_recipe_uses_its_own_learning_rates():
    """The rates in the shipped tables are for the paper's schedule."""
    shipped, quick = (
        load_experiment("table-2"),
        load_experiment("table-2", settings={"recipe": "default", "filters": 8}),
    )
    rows = {row.name: row for row in quick.rows}
    assert {row.learning_rate for row in shipped.rows if row.method == "weak"} - {None}
    assert {row.learning_rate for row in quick.rows} == {None}
    assert rows["learned prior"].learned.filters == 8
    assert next(row for row in shipped.rows if row.name == "learned prior").learned.filters == 128
    tuned = load_experiment("table-1", settings={"recipe": "default"})
    assert not any(row.tune for row in tuned.rows)


def test_elsewhere_needs_another_region():
    alone = load_experiment("city-windows").model_copy(update={"scored": ("durham",), "elsewhere": ()})
    with pytest.raises(ConfigError, match="no region other than 'durham' to train on"):
        alone.others("durham")


# -- running ---------------------------------------------------------------------------------------


@pytest.fixture
def two_rows():
    """A prior, and QR starting from labels elsewhere, in two cities."""
    return small("table-2", modes=("joint", "tile")).select(
        rows=["prior", "QR from Pittsburgh"], regions=["durham", "phoenix"]
    )


def test_running_a_table_twice_gives_identical_figures(tmp_path, two_rows, enviroatlas_root):
    reports = []
    for name in ("one", "two"):
        runner = Runner(two_rows, enviroatlas_root, tmp_path / name)
        write_report(tmp_path / name, two_rows, runner.run())
        reports.append({p.name: p.read_bytes() for p in (tmp_path / name).glob("re*") if p.suffix != ".png"})
    assert sorted(reports[0]) == ["report.json", "report.md", "results.jsonl"]
    assert reports[0] == reports[1]
    maps = {r["map"] for r in map(json.loads, reports[0]["results.jsonl"].splitlines())}
    assert maps == {"prior", "q", "r"}


def test_a_killed_run_resumes(tmp_path, two_rows, enviroatlas_root, monkeypatch):
    whole = Runner(two_rows, enviroatlas_root, tmp_path / "whole").run()
    score, calls = Runner._score, []

    def killed(self, *args, **options):
        calls.append(args[1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return score(self, *args, **options)

    monkeypatch.setattr(Runner, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        Runner(two_rows, enviroatlas_root, tmp_path / "cut").run()
    done = read_records(tmp_path / "cut", Result)
    assert 0 < len(done) < len(whole)
    trained = []
    original = runner_module.train_files
    monkeypatch.setattr(runner_module, "train_files", lambda *a, **o: trained.append(a[1]) or original(*a, **o))
    again = Runner(two_rows, enviroatlas_root, tmp_path / "cut").run()
    assert again == whole
    assert (tmp_path / "cut" / RESULTS).read_bytes() == (tmp_path / "whole" / RESULTS).read_bytes()
    models = {path.name for path in (tmp_path / "cut" / "models").iterdir()}
    assert 0 < len(trained) < len(models)  # models trained before the kill are not trained again
    trained.clear()
    Runner(two_rows, enviroatlas_root, tmp_path / "cut").run()
    assert trained == []


def test_another_configuration_is_refused(tmp_path, two_rows, enviroatlas_root):
    prior = two_rows.select(rows=["prior"])
    done = Runner(prior, enviroatlas_root, tmp_path / "run").run()
    wider = two_rows.settings.model_copy(update={"filters": 4})
    with pytest.raises(ConfigError, match=r"another configuration \(it differs in settings\)"):
        Runner(prior.model_copy(update={"settings": wider}), enviroatlas_root, tmp_path / "run")
    other = prior.rows[0].model_copy(update={"prior": "nlcd"})
    with pytest.raises(ConfigError, match=r"it differs in row 'prior'"):
        Runner(prior.model_copy(update={"rows": (other,)}), enviroatlas_root, tmp_path / "run")
    # with more rows or seeds, or another title, finished cells stay finished
    more = two_rows.model_copy(update={"seeds": 2, "title": "again"})
    assert Runner(more, enviroatlas_root, tmp_path / "run").results() == done


def test_other_data_is_refused(tmp_path, two_rows, enviroatlas_root):
    prior = two_rows.select(rows=["prior"])
    Runner(prior, enviroatlas_root, tmp_path / "run").run()
    index = tmp_path / "other" / "enviroatlas_lotp" / "spatial_index.geojson"
    index.parent.mkdir(parents=True)
    index.write_text((enviroatlas_root / "enviroatlas_lotp" / index.name).read_text() + "\n")
    with pytest.raises(ConfigError, match="it differs in data"):
        Runner(prior, tmp_path / "other", tmp_path / "run")


def test_listing_the_cells_creates_no_folder(tmp_path, two_rows, enviroatlas_root):
    assert list(Runner(two_rows, enviroatlas_root, tmp_path / "run").cells())
    assert not (tmp_path / "run").exists()


def test_learned_priors_of_two_sizes_are_kept_apart(tmp_path, enviroatlas_root):
    content = small("table-2").select(rows=["learned prior"], regions=["durham"]).model_dump(mode="json")
    second = content["rows"][0] | {"name": "wider", "published": {}}
    content["rows"].append(second | {"learned": second["learned"] | {"filters": 5}})
    Runner(Experiment.model_validate(content), enviroatlas_root, tmp_path).run()
    assert sorted(load_model(path).filters for path in (tmp_path / "models").iterdir()) == [3, 5]


def test_a_map_of_another_resolution_is_scored_on_the_tile(tmp_path, enviroatlas_root):
    """A 3 m mosaic that extends beyond the tile, with an unknown code out there."""
    experiment = small("table-e2").select(rows=["Robinson 2019"], regions=["durham"])
    places = Places(experiment, enviroatlas_root, tmp_path).find("durham")
    for place in places:
        with rasterio.open(place.labels) as src:
            grid = Grid.of(src)
        side = grid.width // 3 + 20
        codes = np.full((side, side), 3, dtype=np.uint8)
        codes[-5:] = 99
        transform = grid.transform @ rasterio.Affine.translation(-30, -30) @ rasterio.Affine.scale(3)
        write_raster(
            tmp_path / f"{place.name}.tif", codes, Grid(width=side, height=side, transform=transform, crs=grid.crs)
        )
    external = experiment.select(external={"Robinson 2019": str(tmp_path / "{tile}.tif")})
    (result,) = Runner(external, enviroatlas_root, tmp_path / "run").run()
    own = [p.labels for p in places]
    assert result.pixels == sum(int(np.isin(rasterio.open(p).read(1), (10, 20, 30, 40, 70)).sum()) for p in own)


def test_damaged_results_are_an_error(tmp_path, two_rows, enviroatlas_root):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RESULTS).write_text('{"row": "prior"}\n')
    with pytest.raises(InputError, match="delete that line"):
        Runner(two_rows, enviroatlas_root, tmp_path / "run").run()


def test_table_2_on_a_small_scale(tmp_path, enviroatlas_root):
    """Every row of the shipped table, on a directory with torchgeo's layout."""
    experiment = small("table-2", modes=("joint",))
    runner = Runner(experiment, enviroatlas_root, tmp_path)
    results = runner.run()
    assert {(r.row, r.region) for r in results} == {
        (row.name, c) for row in experiment.rows for c in experiment.columns
    }
    models = tmp_path / "models"
    kinds = {path.name.split("-")[0]: load_model(path) for path in sorted(models.iterdir())}
    assert kinds["prior"].extras == ("nlcd", "roads", "buildings", "waterways", "waterbodies")
    names = {path.name: load_model(path) for path in models.iterdir()}
    aux = next(model for name, model in names.items() if name.startswith("hr-aux"))
    assert aux.extras == ("prior",)
    assert len(next(model for name, model in names.items() if name.startswith("qr-best")).members) == 3
    joint = next(model for name, model in names.items() if name.startswith("qr-from-random-joint-durham"))
    assert len(joint.record["tiles"]) == 2
    # the scores equal those of landprior evaluate, pooled over the maps
    place = runner._places.find("phoenix")
    mine = next(r for r in results if (r.row, r.region) == ("HR", "phoenix"))
    folder = next(p for p in (tmp_path / "maps").iterdir() if p.name.startswith("hr-joint-phoenix"))
    pairs = [(next(folder.glob(f"*{p.name.lower()}*_q.tif")), p.labels) for p in place]
    scores = evaluate(pairs, runner._scheme)
    assert scores.confusion.tolist() == mine.confusion
    assert mine.pixels == 2 * (72 * 72 - 81)  # shrub is ignored
    text = to_markdown(experiment, summarise(experiment, results))
    assert "| HR | joint | 0.002 | q | Durham NC | 2 |" in text
    assert "| 74.2 / 35.9 |" in text  # the published figure


def test_table_1_chooses_the_rate_on_delaware(tmp_path, chesapeake_root):
    experiment = small("table-1", modes=("joint",), settings=TINY | {"recipe": "paper"}).select(
        rows=["QR", "QR on the prior built here"], regions=["ny+pa"]
    )
    results = Runner(experiment, chesapeake_root, tmp_path).run()
    tuned = next(r for r in results if r.row == "QR")
    trials = json.loads(next((tmp_path / "tuning").rglob("tune.json")).read_text())
    best = max(trials.values(), key=lambda trial: trial["accuracy"])
    assert sorted(t["learning_rate"] for t in trials.values()) == [1e-5, 1e-4, 1e-3]
    assert tuned.learning_rate == best["learning_rate"]
    assert tuned.tiles == 2
    assert next(r for r in results if r.row != "QR").learning_rate == 1e-4  # Delaware's own, in the file


def test_figure_e3_draws_the_maps(tmp_path, enviroatlas_root):
    from matplotlib.image import imread

    experiment = small("figure-e3")
    runner = Runner(experiment, enviroatlas_root, tmp_path)
    results = runner.run()
    assert [r.row for r in results] == [row.name for row in experiment.rows]
    assert {r.tiles for r in results} == {1}
    height, width = imread(runner.draw_panels(results)).shape[:2]
    assert width > 6 * height  # image, prior, six maps, labels


def test_external_maps_are_scored_in_three_views(tmp_path, enviroatlas_root):
    """A map without a barren class and with its own codes, like that in Table E.2."""
    experiment = small("table-e2").select(rows=["Robinson 2019"], regions=["durham"])
    assert list(Runner(experiment, enviroatlas_root, tmp_path / "none").cells()) == []  # without its maps
    places = Places(experiment, enviroatlas_root, tmp_path)
    for place in places.find("durham"):
        with rasterio.open(place.labels) as src:
            labels = src.read(1)
            grid = Grid.of(src)
        codes = np.select([labels == 10, labels == 40, labels == 70], [1, 2, 3], 4).astype(np.uint8)
        write_raster(tmp_path / "maps" / f"{place.name}.tif", codes, grid)
    external = experiment.select(external={"Robinson 2019": str(tmp_path / "maps" / "{tile}.tif")})
    results = Runner(external, enviroatlas_root, tmp_path / "run").run()
    lines = summarise(external, results)
    assert [line.view for line in lines] == ["all", "merged", "reassigned"]
    assert [line.accuracy for line in lines] == [100.0] * 3
    assert lines[0].published == (76.6, 43.4)
    assert lines[1].published == (77.0, 54.1)


def test_the_views_by_hand(enviroatlas):
    confusion = np.zeros((5, 5), dtype=np.int64)
    confusion[0, 0], confusion[3, 3] = 10, 20
    confusion[1] = [0, 30, 5, 0, 0]  # impervious, partly mapped barren
    confusion[2] = [0, 15, 0, 0, 5]  # barren, mostly mapped impervious
    scores = Scores(scheme=enviroatlas, confusion=confusion)
    merge = ("impervious", "barren")
    merged, reassigned = (view_scores(scores, view, merge) for view in ("merged", "reassigned"))
    assert scores.accuracy == pytest.approx(60 / 85)
    assert merged.accuracy == reassigned.accuracy == pytest.approx(80 / 85)
    assert merged.mean_iou == pytest.approx((1 + 50 / 55 + 1 + 0) / 4)  # water, both, trees, grass
    assert reassigned.mean_iou == pytest.approx((1 + 1 + 15 / 20 + 1 + 0) / 5)
    assert view_scores(scores, "all", merge) is scores


def test_labels_used_for_training_are_not_used_for_scores(tmp_path, enviroatlas_root):
    content = small("table-2").select(rows=["HR"], regions=["durham"]).model_dump(mode="json")
    content["rows"][0]["train"] = "durham/test"
    with pytest.raises(ConfigError, match="trained on tiles of durham that are scored"):
        Runner(Experiment.model_validate(content), enviroatlas_root, tmp_path / "a").run()
    learned = small("table-2").select(rows=["learned prior"], regions=["durham"]).model_dump(mode="json")
    learned["rows"][0]["learned"]["source"] = "test"
    with pytest.raises(ConfigError, match="contains the tile itself"):
        Runner(Experiment.model_validate(learned), enviroatlas_root, tmp_path / "b").run()


def test_files_from_a_pattern_cut_into_halves(tmp_path, make_raster, coarse, make_image, rng):
    """Your own files: two places, each cut into two tiles, with priors learned on the other half."""
    for name in ("one", "two"):
        codes = coarse(60, 81, codes=(41, 81))
        make_image(f"{name}_image.tif", 60, 81)
        make_raster(f"{name}_nlcd.tif", codes)
        make_raster(f"{name}_roads.tif", (rng.random((60, 81)) < 0.05).astype(np.uint8))
        make_raster(f"{name}_labels.tif", np.where(codes == 41, 40, 70).astype(np.uint8))
    layers = {layer: f"{{split}}_{layer}.tif" for layer in ("image", "nlcd", "roads", "labels")}
    learned = {"source": "siblings", "filters": 3, "steps": 3}
    elsewhere = learned | {"source": "others"}
    content = minimal(
        data={"kind": "files", "halves": True, "layers": layers},
        regions={name: {"splits": {"test": [name]}} for name in ("one", "two")},
        rows=[
            {"name": "here", "method": "prior", "prior": "learned", "learned": learned},
            {"name": "there", "method": "prior", "prior": "learned", "learned": elsewhere},
            {"name": "HR", "method": "supervised", "train": "others"},
            {"name": "QR", "method": "weak", "prior": "nlcd", "maps": ["r"]},
        ],
        modes=["tile"],
        settings=TINY | {"patch_size": 24},
    )
    experiment = Experiment.model_validate(content)
    runner = Runner(experiment, tmp_path, tmp_path / "run")
    results = runner.run()
    assert {r.pixels for r in results} == {60 * 81}
    left, right = runner._places.find("one")
    with rasterio.open(left.image) as one, rasterio.open(right.image) as two:
        assert (one.width, two.width) == (40, 41)
        assert one.bounds.right == two.bounds.left
    trained = {path.name: load_model(path).record["tiles"] for path in (tmp_path / "run" / "models").iterdir()}
    siblings = next(tiles for name, tiles in trained.items() if name.startswith("prior-siblings-of-one-left"))
    assert siblings == ["one/right"]
    assert next(tiles for name, tiles in trained.items() if name.startswith("hr-not-one")) == ["two/left", "two/right"]
    assert len([name for name in trained if name.startswith("qr-tile-one")]) == 2


def test_the_report_has_own_and_published_figures_and_the_difference(tmp_path, two_rows, enviroatlas_root):
    results = Runner(two_rows, enviroatlas_root, tmp_path).run()
    paths = write_report(tmp_path, two_rows, results, missing=3)
    assert [path.name for path in paths] == ["report.md", "report.json", "report.png"]
    report = json.loads((tmp_path / "report.json").read_text())
    line = next(
        x
        for x in report["lines"]
        if (x["row"], x["region"], x["map"], x["mode"]) == ("QR from Pittsburgh", "durham", "r", "joint")
    )
    assert line["published"] == [79.0, 48.4]
    assert line["difference"][0] == pytest.approx(line["accuracy"] - 79.0)
    text = (tmp_path / "report.md").read_text()
    assert "**3 cells are still to be run.**" in text
    assert "per tile" in text
    assert "notebooks" in text  # where the published figures come from
