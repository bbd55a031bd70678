"""Running an experiment: each cell is run once and its results are recorded when it finishes, so runs can resume."""
# Over 450 lines: one class makes all cells, because they share priors, models and maps

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import landprior
from landprior.errors import ConfigError, InputError, MissingInputError
from landprior.implicit.settings import WIDEST_FIELD
from landprior.inputs import checksum
from landprior.landcover.assessment.figures import draw_comparison
from landprior.landcover.assessment.scores import Scores, evaluate
from landprior.landcover.experiments.places import Place, Places
from landprior.landcover.experiments.results import Cell, Result
from landprior.landcover.experiments.tuning import find_best, tune
from landprior.landcover.mapping.options import MapOptions
from landprior.landcover.mapping.predict import map_prior, predict
from landprior.landcover.prior.build import build_prior
from landprior.landcover.prior.cooccurrence import Cooccurrence, load_cooccurrence, measure_cooccurrence
from landprior.landcover.prior.learned import LabelledPlace, learn_prior
from landprior.landcover.prior.settings import prior_settings
from landprior.landcover.training.files import TrainingTile, train_files
from landprior.landcover.training.model import LandcoverModel, load_model
from landprior.landcover.training.settings import TileSettings, make_settings
from landprior.progress import track
from landprior.raster.outputs import check_folder, make_folder, protecting, replacing
from landprior.raster.scheme import load_scheme
from landprior.records import add_records, read_records
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from landprior.landcover.experiments.config import Experiment, Learned, Row
    from landprior.raster.scheme import ClassScheme

logger = logging.getLogger(__name__)

CONFIG = "experiment.json"

_LATER = ("rival", "options", "network")
"""Row fields that older folders do not have; left unset, they do not change the configuration."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What another method maps.

    Parameters
    ----------
    tiles, outputs
        The files of tiles, and where the map of each goes.
    work
        Where one model for all tiles may be kept; it is used again if it is there.
    settings
        Of the training, as far as the method trains.
    options
        Of the method.
    matrix
        P(class | code), and the classes.
    """

    tiles: Sequence[TrainingTile]
    outputs: Sequence[Path]
    work: Path
    settings: TileSettings
    options: Mapping[str, Any]
    matrix: Cooccurrence


class MapMethod(Protocol):
    """A method other than fitting the prior with a loss (:mod:`landprior.superres.rivals`)."""

    def __call__(self, task: Task, *, run: Run) -> None:
        """Write a map of each tile."""


class Runner:
    """Run an experiment in a folder of its own.

    Parameters
    ----------
    experiment
        See :func:`landprior.landcover.experiments.config.load_experiment`.
    root
        The data.
    folder
        Where priors, models, maps and results go. A folder with another configuration is an error.
    rivals
        Methods for rows with ``method: rival``, by name.
    run
        See :class:`landprior.run.Run`.

    Raises
    ------
    ConfigError
        If the folder holds results of another configuration, or a row names an unknown method.
    MissingInputError, InputError
        If the data does not exist, or the folder is the data folder.
    """

    def __init__(
        self,
        experiment: Experiment,
        root: Path,
        folder: Path,
        *,
        rivals: Mapping[str, MapMethod] | None = None,
        run: Run = Run(),
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self._rivals = rivals or {}
        for row in experiment.rows:
            if row.method == "rival" and row.rival not in self._rivals:
                known = ", ".join(self._rivals) or "none"
                msg = f"row {row.name!r}: unknown method {row.rival!r} (available: {known})"
                raise ConfigError(msg)
        self._run = replace(run, overwrite=True)
        self._scheme = load_scheme(experiment.scheme)
        self._places = Places(experiment, root, folder)
        self._root = root
        self._matrices: dict[str, Cooccurrence] = {}
        self._rows = {row.name: row for row in experiment.rows}
        check_folder(folder, [root])
        self._record = self._check()

    # -- the folder ------------------------------------------------------------------------------

    def _check(self) -> dict[str, Any]:
        """Return everything the folder's results depend on; raise an error if the folder was made with something else.

        Adding rows, regions, models or seeds, or changing titles or views, keeps the finished cells.
        """
        path = self.folder / CONFIG
        now = _describe(self.experiment, self._scheme, self._root, self._places)
        if not path.is_file():
            return now
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            rows = dict(before.pop("rows"))
            version = before.pop("landprior")
        except (ValueError, KeyError, AttributeError):
            before, rows, version = {}, {}, None
        mine = now["rows"]
        changed = [name for name in now if name not in ("rows", "landprior") and before.get(name) != now[name]]
        changed += [f"row {name!r}" for name in mine if rows.get(name, mine[name]) != mine[name]]
        if changed:
            msg = (
                f"{self.folder} holds results of another configuration (it differs in {', '.join(changed)}); "
                "give another folder with -o, or delete it"
            )
            raise ConfigError(msg)
        if version != now["landprior"]:
            logger.warning("%s was started with landprior %s; this is %s", self.folder, version, now["landprior"])
        return now | {"rows": rows | mine}

    def _make_path(self, *parts: str) -> Path:
        """Return the path of a file in the folder, and create its parent folder."""
        path = self.folder.joinpath(*parts)
        make_folder(path.parent)
        return path

    def _write_configuration(self) -> None:
        """Write the configuration to the folder."""
        make_folder(self.folder)
        with replacing(self.folder / CONFIG, overwrite=True) as temporary:
            temporary.write_text(json.dumps(self._record, indent=2), encoding="utf-8")

    def results(self) -> list[Result]:
        """Return the results of this experiment's finished cells, in their order."""
        place = {cell.key: number for number, cell in enumerate(self.cells())}
        done = [result for result in read_records(self.folder, Result) if result.key in place]
        return sorted(done, key=lambda result: place[result.key])

    def cells(self) -> Iterator[Cell]:
        """List all cells, in the order of the rows."""
        for row in self.experiment.rows:
            trained = row.method in ("weak", "rival")
            if row.optional and not self._has_data(row):
                continue
            for mode in self.experiment.modes if trained else ("joint",):
                for region in row.regions or self.experiment.columns:
                    for seed in range(self.experiment.seeds if trained or row.method == "supervised" else 1):
                        yield Cell(row.name, mode, region, seed)

    def _has_data(self, row: Row) -> bool:
        """Return whether the maps of an external row exist."""
        regions = row.regions or self.experiment.columns
        places = [place for region in regions for place in self._places.find(region)]
        return all(self._external_path(row, place).is_file() for place in places)

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> list[Result]:
        """Run every unfinished cell and return all results.

        Raises
        ------
        LandpriorError
            The first failure. Finished cells are kept, and the same call resumes from there.
        """
        with protecting(self.inputs()):
            self._write_configuration()
            known = {result.key for result in read_records(self.folder, Result)}
            cells = list(self.cells())
            for cell in track(cells, self.experiment.title[:40], "cell", show=self._run.progress):
                if cell.key in known:
                    continue
                logger.info("%s, %s, %s, seed %d", cell.row, cell.region, cell.mode, cell.seed)
                add_records(self.folder, self._run_cell(cell), Result, key=lambda result: result.key)
        return self.results()

    def inputs(self) -> list[Path]:
        """Return the files that the experiment names, which no result may replace."""
        named = [self.experiment.scheme, *(r.cooccurrence for r in self.experiment.regions.values() if r.cooccurrence)]
        maps = [
            self._external_path(row, place)
            for row in self.experiment.rows
            if row.method == "external"
            for region in row.regions or self.experiment.columns
            for place in self._places.find(region)
        ]
        return [*self._places.files().values(), *map(Path, named), *(self._root / name for name in named), *maps]

    def _run_cell(self, cell: Cell) -> list[Result]:
        row = self._rows[cell.row]
        places = self._places.find(cell.region)
        rate: float | None = None
        if row.method == "prior":
            paths = {"prior": [self._map_of_prior(row, place) for place in places]}
        elif row.method == "external":
            paths = {row.scored_maps[0]: [self._require_external(row, place) for place in places]}
        elif row.method == "supervised":
            model = load_model(self._train_supervised(row, cell))
            rate = _rate_of(model)
            paths = {"q": [self._predict(row, cell, place, model, "q") for place in places]}
        elif row.method == "rival":
            paths = {"q": self._map_by_rival(row, cell, places)}
        else:
            paths, rate = self._map_by_loss(row, cell, places)
        return [
            self._score(row, cell, kind, maps, places, rate) for kind, maps in paths.items() if kind in row.scored_maps
        ]

    def _map_by_loss(self, row: Row, cell: Cell, places: Sequence[Place]) -> tuple[dict[str, list[Path]], float | None]:
        """Train on the region's own tiles against their priors, jointly or separately."""
        groups = [list(places)] if cell.mode == "joint" else [[place] for place in places]
        paths: dict[str, list[Path]] = {"q": [], "r": []}
        rate = self._learning_rate(row, cell)
        for group in groups:
            model = self._train(row, cell, group, rate)
            rate = _rate_of(model)
            for place in group:
                for kind in row.scored_maps:
                    paths[kind].append(self._predict(row, cell, place, model, kind))
        return paths, rate

    def _map_by_rival(self, row: Row, cell: Cell, places: Sequence[Place]) -> list[Path]:
        """Map the region's own tiles by another method, jointly or separately."""
        groups = [list(places)] if cell.mode == "joint" else [[place] for place in places]
        paths: list[Path] = []
        for group in groups:
            tiles = [
                TrainingTile(
                    image=place.image, prior=self._build_prior(row, cell.region, place), nlcd=place.nlcd, name=place.id
                )
                for place in group
            ]
            outputs = [self._map_path(row, cell, place, "q") for place in group]
            task = Task(
                tiles=tiles,
                outputs=outputs,
                work=self._model_path(row, cell, group),
                settings=self._settings(row, cell.seed, None, labelled=False),
                options=row.options,
                matrix=self._find_matrix(group[0].region),
            )
            self._rivals[row.rival](task, run=self._run)
            paths += outputs
        return paths

    def _score(
        self, row: Row, cell: Cell, kind: str, maps: Sequence[Path], places: Sequence[Place], rate: float | None
    ) -> Result:
        """Score maps against labels, pooled over the tiles."""
        total: Scores | None = None
        for path, place in zip(maps, places, strict=True):
            scores = evaluate(
                [(path, place.labels)],
                self._scheme,
                label_map=self._places.region(place.region).label_map,
                map_map=row.map_map,
                on_labels=row.method == "external",
            )
            total = scores if total is None else total + scores
        if total is None:  # pragma: no cover - find() gives at least one place
            msg = f"{cell.region} has no tile"
            raise InputError(msg)
        return Result(
            **asdict(cell),
            map=kind,
            accuracy=total.accuracy,
            mean_iou=total.mean_iou,
            pixels=total.pixels,
            tiles=len(places),
            confusion=total.confusion.tolist(),
            learning_rate=rate,
        )

    def priors(self, row: str, region: str) -> list[tuple[Place, Path]]:
        """Return a region's tiles with their priors for a row, building them if necessary."""
        return [(place, self._build_prior(self._rows[row], region, place)) for place in self._places.find(region)]

    # -- priors ----------------------------------------------------------------------------------

    def _find_matrix(self, region: str) -> Cooccurrence:
        """Return P(class | NLCD code) of a region: the named one, one measured on its other splits, or the scheme's."""
        if region not in self._matrices:
            rules = self._places.region(region)
            if rules.measure:
                tiles = [place for split in rules.measure for place in self._places.find(region, split)]
                pairs = [(_require_path(place.nlcd, "NLCD", place), place.labels) for place in tiles]
                self._matrices[region] = measure_cooccurrence(pairs, self._scheme, label_map=rules.label_map)
            else:
                own = None if rules.cooccurrence is None else self._root / rules.cooccurrence
                self._matrices[region] = load_cooccurrence(
                    rules.cooccurrence if own is None or not own.is_file() else own, self._scheme
                )
        return self._matrices[region]

    def _build_prior(self, row: Row, cell_region: str, place: Place) -> Path:
        """Return a tile's prior of the row's kind, building it if necessary."""
        if row.prior == "published":
            return _require_path(place.prior, "published prior", place)
        name = f"{row.prior}{_suffix(row, cell_region)}"
        path = self._make_path("priors", _slug(name), f"{_slug(place.id)}.tif")
        if path.is_file():
            return path
        learned = self._learn_prior(row.learned, cell_region, place) if row.prior == "learned" else None
        build_prior(
            _require_path(place.nlcd, "NLCD", place),
            path,
            cooccurrence=self._find_matrix(place.region),
            layers={} if row.prior == "nlcd" else place.layers,
            like=place.image,
            learned=learned,
            run=self._run,
        )
        return path

    def _learn_prior(self, learned: Learned, cell_region: str, place: Place) -> LandcoverModel:
        """Learn a prior on tiles other than the one it is for."""
        size = f"{learned.filters} x {learned.steps} x {learned.learning_rate:g}"
        if learned.source == "siblings":
            source = [other for other in self._places.find(place.region) if other.id != place.id]
            name = f"siblings of {place.id}"
        elif learned.source == "others":
            others = self.experiment.others(cell_region)
            source = [other for region in others for other in self._places.find(region)]
            name = f"tiles outside {cell_region}"
        else:
            source = self._places.find(place.region, learned.source)
            name = f"{place.region} {learned.source}"
        if any(other.id == place.id for other in source) or not source:
            msg = f"a prior for {place.id} cannot be learned on {name!r}: it contains the tile itself, or no tile"
            raise ConfigError(msg)
        path = self._make_path("models", f"prior-{_slug(f'{name} {size}')}.safetensors")
        if path.is_file():
            return load_model(path)
        labelled = [
            LabelledPlace(
                nlcd=_require_path(other.nlcd, "NLCD", other),
                labels=other.labels,
                layers=other.layers,
                cooccurrence=self._find_matrix(other.region),
                label_map=self._places.region(other.region).label_map,
                name=other.id,
            )
            for other in source
        ]
        settings = prior_settings(
            filters=learned.filters, training={"steps": learned.steps, "learning_rate": learned.learning_rate}
        )
        return learn_prior(labelled, path, settings, run=self._run)

    # -- models ----------------------------------------------------------------------------------

    def _settings(self, row: Row, seed: int, rate: float | None, *, labelled: bool) -> TileSettings:
        changes = self.experiment.settings.model_dump(exclude={"recipe"})
        recipe = row.recipe or self.experiment.settings.recipe
        return make_settings(
            recipe,
            labelled=labelled,
            loss=row.objective,
            seed=seed,
            learning_rate=rate or row.learning_rate,
            network=row.network,
            receptive_field=WIDEST_FIELD,
            **changes,
        )

    def _learning_rate(self, row: Row, cell: Cell) -> float | None:
        """Return the row's learning rate, chosen on its validation region if the row is tuned."""
        if row.tune is None:
            return row.learning_rate
        validation = self._places.find(row.tune.region, row.tune.split)
        labelled = row.method == "supervised"
        tiles = self._training_places(row, cell) if labelled else validation
        trials = tune(
            [self._files(row, cell.region, place, labels=labelled) for place in tiles],
            [self._files(row, cell.region, place, labels=True) for place in validation],
            self.folder / "tuning" / _slug(f"{row.name} seed {cell.seed}"),
            self._settings(row, cell.seed, None, labelled=labelled),
            rates=row.tune.rates,
            scheme=self._scheme,
            label_map=self._places.region(validation[0].region).label_map,
            run=self._run,
        )
        return find_best(trials).learning_rate

    def _files(self, row: Row, region: str, place: Place, *, labels: bool) -> TrainingTile:
        wants_prior = row.method == "weak" or "prior" in row.inputs
        return TrainingTile(
            image=place.image,
            prior=self._build_prior(row, region, place) if wants_prior else None,
            labels=place.labels if labels else None,
            name=place.id,
        )

    def _training_places(self, row: Row, cell: Cell) -> list[Place]:
        """Return the labelled tiles of a supervised row; never tiles that are scored."""
        if row.train == "others":
            return [place for region in self.experiment.others(cell.region) for place in self._places.find(region)]
        region, _, split = row.train.partition("/")
        return self._places.find(region, split or "test")

    def _train_supervised(self, row: Row, cell: Cell) -> Path:
        """Return the model of a supervised row, trained once for all regions with the same training tiles."""
        tiles = self._training_places(row, cell)
        scored = {place.id for place in self._places.find(cell.region)}
        if scored & {place.id for place in tiles}:
            msg = f"row {row.name!r} would be trained on tiles of {cell.region} that are scored"
            raise ConfigError(msg)
        where = f"not {cell.region}" if row.train == "others" else row.train
        where += _suffix(row, cell.region) if "prior" in row.inputs else ""
        path = self._make_path("models", f"{_slug(f'{row.name} {where} seed {cell.seed}')}.safetensors")
        if path.is_file():
            return path
        rate = self._learning_rate(row, cell)
        files = [self._files(row, cell.region, place, labels=True) for place in tiles]
        maps = {tuple(sorted(self._places.region(place.region).label_map.items())) for place in tiles}
        if len(maps) > 1:
            msg = f"row {row.name!r} is trained on regions with different label maps; give them the same one"
            raise ConfigError(msg)
        train_files(
            [(tile.image, tile.prior) for tile in files],
            path,
            settings=self._settings(row, cell.seed, rate, labelled=True),
            labels=[place.labels for place in tiles],
            label_map=dict(maps.pop()),
            names=[tile.name for tile in files],
            scheme=self._scheme,
            run=self._run,
        )
        return path

    def _train(self, row: Row, cell: Cell, group: Sequence[Place], rate: float | None) -> LandcoverModel:
        """Train a model on the priors of a group of tiles."""
        path = self._model_path(row, cell, group)
        if path.is_file():
            return load_model(path)
        init = None if row.init is None else self._train_supervised(self._rows[row.init], cell)
        return train_files(
            [(place.image, self._build_prior(row, cell.region, place)) for place in group],
            path,
            settings=self._settings(row, cell.seed, rate, labelled=False),
            names=[place.id for place in group],
            scheme=self._scheme,
            init=init,
            run=self._run,
        )

    def _model_path(self, row: Row, cell: Cell, group: Sequence[Place]) -> Path:
        where = group[0].id + _suffix(row, cell.region) if cell.mode == "tile" else cell.region
        return self._make_path("models", f"{_slug(f'{row.name} {cell.mode} {where} seed {cell.seed}')}.safetensors")

    # -- maps ------------------------------------------------------------------------------------

    def _predict(self, row: Row, cell: Cell, place: Place, model: LandcoverModel, kind: str) -> Path:
        return predict(
            place.image,
            self._map_path(row, cell, place, kind),
            model,
            prior=self._build_prior(row, cell.region, place) if "prior" in model.extras else None,
            posterior=self._build_prior(row, cell.region, place) if kind == "r" else None,
            force=(row.recipe or self.experiment.settings.recipe) != "best",  # other recipes map r itself
            options=MapOptions(finish="none"),  # as in the paper
            run=self._run,
        )

    def find_maps(self, result: Result) -> list[tuple[Place, Path]]:
        """Return the tiles of a result with its maps, which need not exist: those of others are not kept by cell."""
        cell = Cell(result.row, result.mode, result.region, result.seed)
        row = self._rows[result.row]
        return [(place, self._map_path(row, cell, place, result.map)) for place in self._places.find(result.region)]

    def _map_path(self, row: Row, cell: Cell, place: Place, kind: str) -> Path:
        folder = _slug(f"{row.name} {cell.mode} {cell.region} seed {cell.seed}")
        return self._make_path("maps", folder, f"{_slug(place.id)}_{kind}.tif")

    def _map_of_prior(self, row: Row, place: Place) -> Path:
        path = self._make_path("maps", _slug(row.name), f"{_slug(place.id)}_prior.tif")
        return map_prior(self._build_prior(row, place.region, place), path, scheme=self._scheme, run=self._run)

    def _external_path(self, row: Row, place: Place) -> Path:
        return self._root / row.path.format(region=place.region, split=place.split, tile=place.name)

    def _require_external(self, row: Row, place: Place) -> Path:
        path = self._external_path(row, place)
        if not path.is_file():
            msg = f"{path} is missing: the map of row {row.name!r} for {place.id}"
            raise MissingInputError(msg)
        return path

    def draw_panels(self, results: Sequence[Result]) -> Path | None:
        """Draw image, prior, the maps of all rows and labels of the first tile side by side, if ``panels`` is set."""
        if not self.experiment.panels:
            return None
        place = self._places.find(self.experiment.columns[0])[0]
        seen = [r for r in results if r.region == self.experiment.columns[0] and r.seed == 0]
        maps = {
            f"{r.row}: {r.map}": self._map_path(self._rows[r.row], Cell(r.row, r.mode, r.region, r.seed), place, r.map)
            for r in seen
            if r.map != "prior"
        }
        there = {title: path for title, path in maps.items() if path.is_file()}
        if not there:
            return None
        rules = self._places.region(place.region)
        first = next(row for row in self.experiment.rows if row.method in ("prior", "weak", "rival"))
        with protecting(self.inputs()):
            return draw_comparison(
                self.folder / "maps.png",
                self._scheme,
                maps=there,
                labels=place.labels,
                label_map=rules.label_map,
                image=place.image,
                prior=self._build_prior(first, place.region, place),
            )


def _require_path(path: Path | None, what: str, place: Place) -> Path:
    if path is None or not path.is_file():
        msg = f"{place.id} has no {what}{'' if path is None else f' ({path} is missing)'}"
        raise MissingInputError(msg)
    return path


def _slug(text: str) -> str:
    """Turn a name into a file name; different names give different file names."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-").lower()
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _rate_of(model: LandcoverModel) -> float:
    return float(model.record["settings"]["training"]["learning_rate"])


def _suffix(row: Row, cell_region: str) -> str:
    """Return a suffix for file names that tells how and where a row's prior was learned, if it was."""
    if row.prior != "learned":
        return ""
    how = row.learned
    where = f" than {cell_region}" if how.source == "others" else ""
    return f" learned {how.source}{where} {how.filters} x {how.steps} x {how.learning_rate:g}"


def _describe(experiment: Experiment, scheme: ClassScheme, root: Path, places: Places) -> dict[str, Any]:
    """Return everything that a cell's results depend on, with checksums of the data and matrices."""
    content = experiment.model_dump(mode="json")
    for region in content["regions"].values():
        del region["title"]
    own = {r.cooccurrence for r in experiment.regions.values() if r.cooccurrence and (root / r.cooccurrence).is_file()}
    return {
        "landprior": landprior.__version__,
        "scheme": scheme.model_dump(mode="json"),
        "data": content["data"] | {"checksum": places.checksum()},
        "regions": content["regions"],
        "elsewhere": list(experiment.elsewhere or experiment.columns),
        "settings": content["settings"],
        "matrices": {name: checksum(root / name) for name in sorted(own)},
        "rows": {
            row["name"]: {
                key: value
                for key, value in row.items()
                if key not in ("regions", "published", "optional")
                and (key != "learned" or row["prior"] == "learned")
                and (key not in _LATER or value)
            }
            for row in content["rows"]
        },
    }
