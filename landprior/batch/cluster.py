"""Running a plan on Ray (``pip install 'landprior[ray]'``): on the cores and GPUs of this machine or of a cluster.

A tile is a task, or where tiles share models, each of its stages and each model; a task has the number of cores set in
the plan. When a worker or a node dies, Ray gives its tasks to others; finished tiles are kept. All nodes must see the
workspace under the same path.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from landprior.batch.jobs import Tally, list_phases
from landprior.batch.plans import parse_training
from landprior.batch.states import TileState, report_state
from landprior.batch.tile_runner import TileRunner
from landprior.errors import ConfigError, InputError
from landprior.progress import Progress
from landprior.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from landprior.batch.jobs import Chain, Job
    from landprior.batch.plans import BatchPlan
    from landprior.landcover.workspace.item import TileFolder
    from landprior.sources.http.client import Network

logger = logging.getLogger(__name__)


def run_on_ray(
    plan: BatchPlan,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float = 0.0,
    memory: int | None = None,
    retries: int = 3,
    network: Callable[[], Network] | None = None,
    work: Callable[[TileFolder], Mapping[str, Any]] | None = None,
    run: Run = Run(),
) -> list[TileState]:
    """Run the tiles of a plan on Ray.

    Parameters
    ----------
    plan
        See :func:`landprior.batch.plans.read_plan`.
    address
        Address of a running cluster (``"auto"``, ``"ray://head:10001"``); None starts Ray on this machine for this run,
        whatever ``RAY_ADDRESS`` says. If the caller has initialised Ray, that is used.
    workers
        Cores of this machine to use, without an address.
    gpus
        GPUs per tile; 0.25 runs four tiles on one.
    memory
        Memory per tile in megabytes, for Ray's scheduling.
    retries
        Number of retries of a tile after its worker or node has died.
    network
        Function that makes the network client in the worker, for plans that fetch.
    work
        See :class:`landprior.batch.tile_runner.TileRunner`.
    run
        See :class:`landprior.run.Run`.

    Returns
    -------
    list of TileState
        In the order of the plan.

    Raises
    ------
    InputError
        If Ray is not installed.
    ConfigError
        If the plan requests an unknown training, the cluster cannot be reached, or this machine has fewer cores than a
        tile needs.
    """
    if importlib.util.find_spec("ray") is None:
        msg = "Ray is not installed; install it with: pip install 'landprior[ray]', or run the plan without --ray"
        raise InputError(msg)
    import ray
    from ray.exceptions import RayError

    parse_training(plan)  # once, not in every tile
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address or "local", **options, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            what = "Ray cannot be started on this machine" if address is None else f"no Ray cluster at {address}"
            msg = f"{what} ({_first_line(error)})"
            raise ConfigError(msg) from error
    try:
        if address is None:
            _require_cores(plan.recipe.threads, int(ray.cluster_resources().get("CPU", 0)))
        task = ray.remote(_run_job).options(
            num_cpus=plan.recipe.threads,
            num_gpus=gpus,
            memory=None if memory is None else memory * 2**20,
            max_retries=retries,
            name=f"landprior {plan.city}",
        )
        shared = ray.put(plan)

        def submit(job: Job) -> Any:  # noqa: ANN401 - an ObjectRef of Ray
            return task.remote(shared, job, network, work, run)

        phases = list_phases(plan, whole=work is not None)
        return _collect(plan, phases, submit, RayError, progress=run.progress)
    finally:
        if ours:
            ray.shutdown()


def _require_cores(wanted: int, there: int) -> None:
    if there < wanted:  # Ray would wait for a larger machine forever
        msg = f"a tile of this plan needs {wanted} cores and Ray has {there}; make the plan with --threads {there}"
        raise ConfigError(msg)


def _collect(
    plan: BatchPlan,
    phases: Iterable[Sequence[Chain]],
    submit: Callable[[Job], Any],
    failure: type[Exception],
    *,
    progress: bool,
) -> list[TileState]:
    """Submit jobs as soon as they may begin, and wait for all of them."""
    import ray

    tally = Tally()
    waiting: dict[Any, tuple[Chain, Job]] = {}
    with Progress(len(plan.tiles), plan.city, "tile", show=progress, leave=True) as bar:

        def go_on(chain: Chain, jobs: Sequence[Job]) -> None:
            waiting.update({submit(job): (chain, job) for job in jobs})
            if chain.ended:
                report(tally.note(chain))

        def report(states: Sequence[TileState]) -> None:
            for state in states:
                report_state(state)
            bar.update(len(states))

        for chains in phases:
            for chain in chains:
                go_on(chain, chain.begin())
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                chain, job = waiting.pop(done)
                try:
                    states = ray.get(done)
                except failure as error:  # its workers died repeatedly
                    why = f"{type(error).__name__}: {_first_line(error)}"
                    states = [TileState(name, "failed", why) for name in job.tiles]
                go_on(chain, chain.close(job, states))
        report(tally.close())
    return [tally.states[tile.name] for tile in plan.tiles]


def _first_line(error: BaseException) -> str:
    """Return the first line of a message that is not empty; Ray's may be empty, or begin with empty lines."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


_RUNNERS: dict[tuple[str, str, Run], TileRunner] = {}
"""State of a worker process shared by its tiles."""


def _run_job(
    plan: BatchPlan,
    job: Job,
    network: Callable[[], Network] | None,
    work: Callable[[TileFolder], Mapping[str, Any]] | None,
    run: Run,
) -> list[TileState]:
    """Run a job in a worker process."""
    key = (plan.workspace, plan.digest, run)
    if key not in _RUNNERS:
        made = None if network is None else network()
        _RUNNERS[key] = TileRunner(plan, network=made, run=run)
    return _RUNNERS[key].run_job(job, work=work)
