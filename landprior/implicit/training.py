"""The training loop, on Lightning Fabric, used by every command that trains.

A *feed* returns the batch of a step as a pure function of the step number, so a run that is interrupted
and resumed sees the same batches as one that is not, and ends with the same weights.

The recipe: cross-entropy with the soft prior breaks the symmetry between classes; then some steps of
cross-entropy with the current posterior r, held constant (expectation-maximisation), sharpen it; then the chosen loss
takes over. The learning rate rises over a few steps and falls along a cosine.
"""

from __future__ import annotations

import logging
import math
import warnings
from copy import deepcopy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landprior.errors import CheckpointWarning, CollapseWarning, TrainingError, TrainingInterruptedError
from landprior.implicit.checkpoints import (
    DAMAGE,
    partial_path,
    read_marginal,
    read_moments,
    read_progress,
    require_finite,
)
from landprior.implicit.checks import require_pair
from landprior.implicit.devices import compile_if_worthwhile, count_operations, make_fabric, subnormals_flushed
from landprior.implicit.history import Epoch, History
from landprior.implicit.losses import IMPLICIT_LOSSES, LOSSES, Loss, ce, em
from landprior.implicit.posterior import RunningMarginal
from landprior.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lightning.fabric import Fabric

    from landprior.implicit.objectives import Batch, Objective
    from landprior.implicit.settings import TrainingSettings

logger = logging.getLogger(__name__)


COLLAPSE_SHARE = 0.995
"""Share of predictions of one class above which, with a far lower mean in the prior, the run has collapsed."""

COLLAPSE_STEPS = 500
"""Steps after which a collapse is reported; half of a shorter run."""


def fit(
    network: nn.Module,
    feed: Callable[[int], Batch],
    settings: TrainingSettings,
    *,
    objective: Objective | None = None,
    fabric: Fabric | None = None,
    monitor: Callable[[nn.Module], Mapping[str, Any]] | None = None,
    until: Callable[[Epoch], str | None] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: bool = False,
) -> History:
    """Train a network in place.

    Parameters
    ----------
    network
        Network that predicts log q, class axis 1 (:class:`landprior.implicit.networks.SmoothedNetwork`).
    feed
        Function that returns the batch of a step, on any device; a pure function of the step.
    settings
        See :class:`TrainingSettings`.
    objective
        Objective after the warm-up, instead of the settings' loss. Its state, if any, must be in
        buffers of the network, which are stored in checkpoints.
    fabric
        A single device, and precision; by default :func:`make_fabric`.
    monitor
        Called with the network after every epoch; its values, numbers or lists, are stored in the history.
    until
        Called after every epoch after the warm-up; if it returns a text, the run ends for that reason.
    checkpoint
        A file for the state after every epoch. If it exists and belongs to the same settings and identity, the run
        resumes from it, or ends at once if it was complete. The caller removes it once the result of the run is saved.
    identity
        Identifier of the run (for example a hash of its data), so that checkpoints of other runs are ignored.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If the settings' loss needs an objective but none is given, or the fabric has several devices.
    ProbabilityError
        If the network or the first batch gives something other than logs of probabilities.
    TrainingError
        If the loss becomes NaN or infinite.
    TrainingInterruptedError
        After ctrl-C, once the checkpoint is written.
    """
    if objective is None and settings.loss not in LOSSES:
        msg = f"{settings.loss} needs more than log q and log prior; give its objective"
        raise ValueError(msg)
    fabric = fabric or make_fabric(settings.precision)
    if fabric.world_size > 1:
        msg = f"a training runs on one device, not on {fabric.world_size}: each device would have its own class sums"
        raise ValueError(msg)
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=fabric.device.type == "cuda",
    )
    _compile(network, feed, settings, fabric)
    network, optimiser = fabric.setup(network, optimiser)
    run = _Run(network, optimiser, settings, checkpoint, identity, objective)
    run.resume()
    if run.step:  # a monitor that compares with the previous look needs that look's state
        _watch(network, monitor)
    bar = Progress(settings.steps, settings.loss, "step", show=progress, done=run.step)
    with bar, subnormals_flushed(fabric.device):
        try:
            while run.step < settings.steps and not run.stopped:
                batch = feed(run.step)
                run.advance(batch, fabric)
                bar.update()
                if run.step % settings.epoch_steps == 0 or run.step == settings.steps:
                    run.close_epoch(_watch(network, monitor), until)
                    shown = run.history.epochs[-1]
                    bar.note(f"loss={shown.loss:.3f}, entropy={shown.entropy:.2f}, agree={shown.agreement:.2f}")
        except KeyboardInterrupt:
            where = "nothing was saved"
            if checkpoint is not None and checkpoint.exists():
                where = f"its state is in {checkpoint}; the same command resumes from there"
            msg = f"training was interrupted after {run.step} of {settings.steps} steps; {where}"
            raise TrainingInterruptedError(msg) from None
    return run.history


def _compile(network: nn.Module, feed: Callable[[int], Batch], settings: TrainingSettings, fabric: Fabric) -> None:
    """Compile the network if the run is long enough for it."""
    operations = 0.0
    if settings.compile == "auto" and fabric.device.type == "cuda":
        network.to(fabric.device)
        # forward, and twice that for backward
        operations = 3.0 * settings.steps * count_operations(network, fabric.to_device(feed(0).inputs))
    compile_if_worthwhile(network, operations, fabric.device, settings.compile)


def _watch(network: nn.Module, monitor: Callable[[nn.Module], Mapping[str, Any]] | None) -> dict[str, Any]:
    if monitor is None:
        return {}
    network.eval()
    try:
        with torch.no_grad():
            return dict(monitor(network))
    finally:
        network.train()


class _Run:
    """The state of a run, as stored in a checkpoint."""

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: TrainingSettings,
        path: Path | None,
        identity: str,
        own: Objective | None = None,
    ) -> None:
        self.network, self.optimiser, self.settings, self.path = network, optimiser, settings, path
        self._own = own
        self._marginal: RunningMarginal | None = None
        if settings.marginal == "running":
            self._marginal = RunningMarginal(settings.memory)
        self._identity = f"{identity}|{settings.model_dump_json()}"
        self.step = 0
        self.history = History()
        self.stopped = False
        self._losses: list[Tensor] = []
        self._last: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._lowest, self._since, self._cuts = math.inf, 0, 0
        self._warned = False
        self._checked = False
        self._counted = False
        self._masks: list[Tensor] = []

    # -- a step ----------------------------------------------------------------------------------

    def advance(self, batch: Batch, fabric: Fabric) -> None:
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * self._rate_factor()
        batch = batch.to(fabric.to_device)
        output = batch.crop(self.network(batch.inputs))
        batch = batch.without_border()
        loss = self._loss(output, batch)
        self.optimiser.zero_grad(set_to_none=True)
        fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimiser.step()
        self._losses.append(loss.detach())
        if batch.mask is None or batch.log_prior is None:
            self._counted = True
        elif not self._counted:  # read once per epoch, to avoid waiting for a GPU
            self._masks.append(batch.mask.any())
        self._last = None if batch.log_prior is None else (output.detach(), batch.log_prior, batch.mask)
        self.step += 1

    def _loss(self, output: Tensor, batch: Batch) -> Tensor:
        settings = self.settings
        warm = self.step < settings.warm_end
        if self._own is not None and not warm:
            return self._own(output, batch)
        if batch.log_prior is None:
            msg = f"{settings.loss} and a warm-up need a prior in every batch"
            raise ValueError(msg)
        prior, mask = batch.log_prior, batch.mask
        if not self._checked:  # only the first batch: the others are made the same way, and checks take time
            if not bool(torch.isnan(output).any()):  # a diverged network: see close_epoch
                require_pair(output, prior, mask)
            self._checked = True
        if warm and (settings.warmup == "ce" or (settings.warmup == "ce-em" and 2 * self.step < settings.warm_end)):
            return ce(output, prior, mask, check=False)
        log_marginal = None if self._marginal is None else self._marginal(output, mask, check=False)
        if warm:
            return em(output, prior, mask, log_marginal=log_marginal, check=False)
        if settings.loss in IMPLICIT_LOSSES:
            return IMPLICIT_LOSSES[settings.loss](output, prior, mask, log_marginal=log_marginal, check=False)
        loss: Loss = LOSSES[settings.loss]  # type: ignore[index]  # fit() has seen to it
        return loss(output, prior, mask, check=False)

    @property
    def _warmed_up(self) -> bool:
        """Whether the current epoch uses the warm-up objective."""
        return self.step > self.settings.warm_end

    def _rate_factor(self) -> float:
        """Return the learning rate of this step, relative to the maximum."""
        settings = self.settings
        if settings.schedule == "plateau":
            return float(0.1**self._cuts)
        if settings.schedule == "constant":
            return 1.0
        ramp = min(1.0, (self.step + 1) / max(settings.ramp_steps, 1))
        return ramp * (0.5 * (1 + math.cos(math.pi * self.step / settings.steps)) + 1e-3)

    # -- an epoch --------------------------------------------------------------------------------

    def close_epoch(self, extra: dict[str, Any], until: Callable[[Epoch], str | None] | None) -> None:
        settings = self.settings
        loss = torch.stack(self._losses).mean().item()
        self._losses.clear()
        self._counted = self._counted or bool(torch.stack(self._masks).any())
        self._masks.clear()
        if not self._counted and self.step >= settings.steps:
            msg = (
                f"in {self.step} steps no batch had a valid pixel or item, so nothing was learned; "
                "give more data, or more steps"
            )
            raise TrainingError(msg)
        if not math.isfinite(loss):
            msg = (
                f"the loss became {loss} at step {self.step}; lower --learning-rate, "
                "and check the image for extreme values"
            )
            raise TrainingError(msg)
        entropy, agreement, share, prior_share = self._describe()
        rate = float(self.optimiser.param_groups[0]["lr"])
        self.history.epochs.append(Epoch(self.step, loss, entropy, agreement, share, rate, extra))
        late = self.step > max(self.settings.warm_end, min(settings.steps // 2, COLLAPSE_STEPS))  # q starts flat
        if share > COLLAPSE_SHARE and prior_share < 0.9 and late and not self._warned:
            self._warned = True
            warnings.warn(
                f"q predicts one class {share:.1%} of the time, but the prior's mean is {prior_share:.0%}: a "
                "collapsed solution. Try another --seed, a lower --learning-rate, more --warmup-steps, larger batches",
                CollapseWarning,
                stacklevel=3,
            )
        self._watch_plateau(loss)
        reason = until(self.history.epochs[-1]) if until is not None and self._warmed_up else None
        if reason is not None:
            self._stop(reason)
        self.save()

    def _describe(self) -> tuple[float, float, float, float]:
        """Return entropy of q, agreement with the prior, largest class share in q, and the prior's mean of it."""
        if self._last is None:
            return math.nan, math.nan, 0.0, 1.0
        log_q, log_prior, mask = self._last
        keep = torch.ones_like(log_q[:, 0], dtype=torch.bool) if mask is None else mask
        best = log_q.argmax(1)
        counts = torch.bincount(best[keep], minlength=log_q.shape[1])
        top = int(counts.argmax())
        entropy = -(log_q.exp() * log_q.clamp_min(-100)).sum(1)[keep].mean()
        agreement = (best == log_prior.argmax(1))[keep].float().mean()
        prior_share = log_prior[:, top].exp()[keep].mean()
        return entropy.item(), agreement.item(), (counts[top] / counts.sum().clamp_min(1)).item(), prior_share.item()

    def _watch_plateau(self, loss: float) -> None:
        settings = self.settings
        if not self._warmed_up:
            return  # the objective has changed
        if loss < self._lowest - 1e-4 * abs(self._lowest if math.isfinite(self._lowest) else 0.0):
            self._lowest, self._since = loss, 0
            return
        self._since += 1
        if settings.schedule == "plateau" and self._since % settings.plateau_epochs == 0:
            self._cuts += 1
        if settings.patience is not None and self._since >= settings.patience:
            self._stop(f"no progress of the loss in {settings.patience} epochs")

    def _stop(self, reason: str) -> None:
        self.stopped = True
        self.history.stopped = reason

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self) -> bool:
        """Write the state atomically; return whether there is a file to resume from."""
        if self.path is None:
            return False
        if self._losses:  # in the middle of an epoch: keep the file of the last one to resume from
            return self.path.exists()
        state = {
            "identity": self._identity,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "history": asdict(self.history),
            "plateau": [self._lowest, self._since, self._cuts],
            "stopped": self.stopped,
            "counted": self._counted,
            **({} if self._marginal is None else {"marginal": self._marginal.state_dict()}),
        }
        part = partial_path(self.path)
        try:
            with part.open("wb") as stream:
                torch.save(state, stream)
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
        return True

    def resume(self) -> None:
        """Resume from the checkpoint, if it exists and has the same settings; otherwise start afresh."""
        if self.path is None:
            return
        partial_path(self.path).unlink(missing_ok=True)  # left by a run that was killed while writing
        if not self.path.exists():
            return
        network, optimiser = (deepcopy(part.state_dict()) for part in (self.network, self.optimiser))
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            if state["identity"] != self._identity:
                logger.warning("%s belongs to other data or settings; starting over", self.path)
                return
            progress = read_progress(state, self.settings.steps)
            marginal = None if self._marginal is None else read_marginal(state["marginal"])
            moments = read_moments(state["optimiser"], self.optimiser)
            require_finite(state["network"].values())
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict({"state": moments, "param_groups": optimiser["param_groups"]})
        except DAMAGE as error:
            # undo what was read before the error: the run starts from the original weights
            self.network.load_state_dict(network)
            self.optimiser.load_state_dict(optimiser)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"{self.path} is not a usable checkpoint ({reason}); starting over", CheckpointWarning, stacklevel=3
            )
            return
        if self._marginal is not None and marginal is not None:
            self._marginal.total, self._marginal.weight = marginal
        self.step, self.history, self.stopped = progress.step, progress.history, progress.stopped
        self._lowest, self._since, self._cuts = progress.plateau
        self._counted = progress.counted
        logger.info("resuming from step %d of %s", self.step, self.path)
