"""Settings of land-cover training, and recipes: named sets of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from landprior.implicit.settings import OUTPUT_SMOOTHING, SUPERVISED_SMOOTHING, WIDEST_FIELD, TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landprior.implicit.settings import LossName


SETTLED = 0.01
"""Share of pixels that change class between two snapshots below which a map has settled (default)."""

USUAL_FIELD = 7
"""Side of the receptive field in pixels, chosen on the demo scenes, Ohio and Durham."""

LABELLED: dict[str, Any] = {"smoothing": SUPERVISED_SMOOTHING, "settled": 0.0, "receptive_field": WIDEST_FIELD}
"""Fields that differ where labels are fitted: they say where outlines are, so the network may see far."""


class TileSettings(BaseModel):
    """Settings of land-cover training: the loop, the network and the patches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: TrainingSettings = TrainingSettings()
    network: Literal["fcn", "unet"] = Field(
        "fcn", description="Network: the paper's, or a U-Net (pip install 'landprior[unet]')."
    )
    filters: int = Field(32, ge=1, description="Channels of the network's inner layers; fewer are faster.")
    receptive_field: int | None = Field(
        None,
        ge=3,
        le=WIDEST_FIELD,
        description="Side of the square of pixels that the FCN sees around a pixel, odd; 11 in the paper. A smaller "
        "one keeps outlines where they are and is faster.  [default: 7, or that of the model to start from; "
        "--recipe paper: 11]",
    )
    patch_size: int = Field(64, ge=11, description="Side of the training patches, pixels.")
    batch_size: int = Field(16, ge=1, description="Number of patches in a step.")
    smoothing: float = Field(OUTPUT_SMOOTHING, ge=0, description="added to the network's output and to the prior")
    settled: float = Field(
        SETTLED,
        ge=0,
        description="stop, past half of the steps, when fewer pixels change class between snapshots; 0: never",
    )
    members: int = Field(
        1, ge=1, le=32, description="Number of networks trained from different random weights and averaged."
    )
    flips: bool = Field(default=False, description="average the predictions of the mirrored image too")
    drop_unsupported: bool = Field(
        default=False, description="leave out of r classes that the verdict finds unsupported"
    )
    starts: int = Field(
        1, ge=1, le=32, description="Number of random restarts; the model with the largest evidence is kept."
    )

    @model_validator(mode="after")
    def _keeps_one_or_all(self) -> TileSettings:
        if self.members > 1 and self.starts > 1:
            msg = "starts keeps one of several models, members keeps all of them; give only one of the two"
            raise ValueError(msg)
        return self

    @field_validator("receptive_field")
    @classmethod
    def _has_a_middle(cls, side: int | None) -> int | None:
        if side is not None and side % 2 == 0:
            msg = f"the receptive field has a pixel in its middle, so its side is odd, not {side}"
            raise ValueError(msg)
        return side

    @model_validator(mode="after")
    def _is_of_the_fcn(self) -> TileSettings:
        if self.network != "fcn" and self.receptive_field not in (None, WIDEST_FIELD):
            msg = f"the receptive field is that of the FCN; the network {self.network} has its own, so leave it out"
            raise ValueError(msg)
        return self

    def network_options(self, bands: int = 1, extras: Sequence[str] = ()) -> dict[str, int]:
        """Return the options of the network for an image's bands and extra inputs.

        Only the FCN has any; the networks of a learned prior (no bands) and of drawings (``position``) have their own
        receptive fields.
        """
        side = USUAL_FIELD if self.receptive_field is None else self.receptive_field
        if self.network != "fcn" or not bands or "position" in extras or side == WIDEST_FIELD:
            return {}
        return {"receptive_field": side}

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> TileSettings:
        """Return settings that were recorded; version 0.1 recorded no receptive field, as there was only one."""
        return cls.model_validate({"receptive_field": WIDEST_FIELD, **recorded})

    def describe(self) -> dict[str, Any]:
        """Return what results depend on; version 0.1 had no receptive field but the widest."""
        return self.model_dump(mode="json", exclude={"receptive_field"}) | self.network_options()

    @property
    def recipe(self) -> str:
        """Recipe of :func:`make_settings` the settings are based on, whatever was changed."""
        if self.training.schedule == "plateau":
            return "paper"
        return "best" if self.flips or self.drop_unsupported else "default"

    @classmethod
    def best(cls, **changes: Any) -> TileSettings:  # noqa: ANN401 - the fields
        """Return the more accurate recipe of ``docs/results/accuracy.md``, at three times the computation."""
        return cls(**{"members": 3, "flips": True, "drop_unsupported": True} | changes)

    @classmethod
    def supervised(cls, **changes: Any) -> TileSettings:  # noqa: ANN401 - the fields
        """Return the settings to fit labels: cross-entropy, output smoothed by 1e-8, 11 x 11 px [R E.1.3]."""
        training = {"loss": "ce"} | changes.pop("training", {})
        return cls(training=TrainingSettings(**training), **LABELLED | changes)

    @classmethod
    def paper(cls, loss: LossName = "qr", **changes: Any) -> TileSettings:  # noqa: ANN401
        """Return the published schedule: no warm-up, plateau, 128 filters, 11 x 11 px, 128 patches of 128 x 128.

        Parameters
        ----------
        loss
            Loss to minimise; the learning rate is 1e-3 for RQ and 1e-4 for the others.
        **changes
            Other fields.

        Returns
        -------
        TileSettings
            Up to 20,000 steps.
        """
        training = TrainingSettings(
            loss=loss,
            steps=20_000,
            warmup="none",
            warmup_steps=0,
            learning_rate=1e-3 if loss == "rq" else 1e-4,
            schedule="plateau",
            epoch_steps=100,
            plateau_epochs=5,
        )
        published = {"filters": 128, "receptive_field": WIDEST_FIELD, "patch_size": 128, "batch_size": 128}
        return cls(**{"training": training, **published, "settled": 0.0} | changes)


def make_settings(recipe: str = "default", *, labelled: bool = False, **changes: Any) -> TileSettings:  # noqa: ANN401
    """Return the settings of a recipe, with some fields changed.

    Parameters
    ----------
    recipe
        ``"default"``, ``"best"`` (:meth:`TileSettings.best`) or ``"paper"`` (:meth:`TileSettings.paper`).
    labelled
        Return settings for labels instead of a prior: cross-entropy by default, output smoothed by 1e-8, 11 x 11 px.
    **changes
        Fields of :class:`TileSettings` or of its training; None leaves a field unchanged.

    Returns
    -------
    TileSettings
        The checked settings.

    Raises
    ------
    pydantic.ValidationError
        If a value is out of its range, or the fields contradict each other.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    given.setdefault("loss", "ce" if labelled else "qr")
    if recipe == "paper":
        base = TileSettings.paper(given["loss"])
    else:
        base = TileSettings.best() if recipe == "best" else TileSettings()
    chosen = base.model_dump() | (LABELLED if labelled else {})
    inner = set(TrainingSettings.model_fields)
    if given.get("warmup_steps") and chosen["training"]["warmup"] == "none":  # as in the paper's schedule
        given.setdefault("warmup", TrainingSettings().warmup)
    chosen["training"] |= {name: value for name, value in given.items() if name in inner}
    chosen |= {name: value for name, value in given.items() if name not in inner}
    return type(base).model_validate(chosen)
