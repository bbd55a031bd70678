"""Training of epitomes: batches, promotion, diversification, resume."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from landprior.errors import InputError, TrainingInterruptedError
from landprior.implicit.epitomes import build_epitome
from landprior.landcover.training.tiles import Tile, measure_bands
from landprior.run import Run
from landprior.superres.epitome_training import (
    EpitomeFeed,
    EpitomeObjective,
    _Learner,
    fit_epitome,
    measure_use,
    shrink_image,
)
from landprior.superres.settings import EpitomeSettings


@pytest.fixture
def tile(enviroatlas):
    """A uint8 tile of stripes and blobs with a hole."""
    rng = np.random.default_rng(5)
    rows, columns = np.indices((60, 70))
    base = np.stack([100 + 50 * np.sin(rows / 3), 100 + 60 * np.sin(columns / 4), 120 + 40 * ((rows // 15) % 2)])
    image = np.clip(base + rng.normal(0, 8, base.shape), 1, 255).astype(np.uint8)
    valid = np.ones((60, 70), dtype=bool)
    valid[20:25, 30:35] = False
    return Tile(
        name="stripes",
        image=torch.from_numpy(np.where(valid, image, 0)),
        prior=torch.full((5, 60, 70), 0.2, dtype=torch.float16),
        valid=torch.from_numpy(valid),
        scheme=enviroatlas,
    )


def settings(**changes):
    return EpitomeSettings(**{"size": 15, "patch": 5, "steps": 60, "patches": 32} | changes)


def test_batches_depend_on_step_and_seed_only_and_avoid_gaps(tile):
    statistics = measure_bands([tile])
    feed = EpitomeFeed([tile, tile], statistics, patch=5, count=500, seed=1)
    one, again, other = feed(3).inputs, feed(3).inputs, feed(4).inputs
    assert one.shape == (500, 3, 5, 5)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    hole = (torch.zeros(3, 1, 1) - torch.tensor(statistics.mean).float()[:, None, None]) / torch.tensor(
        statistics.std
    ).float()[:, None, None]
    assert not torch.isclose(one, hole).all(1).any()  # an invalid pixel is 0 in all bands
    assert feed.patches == 2 * (56 * 66 - 9 * 9)


def test_shrinking_averages_and_a_gap_invalidates_its_square():
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 6)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[0, 3] = False
    small, kept = shrink_image(image, valid, 2)
    assert small[0].tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]
    assert kept.tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("diversify", [False, True])
def test_the_likelihood_rises(tile, diversify):
    chosen = settings(diversify=diversify, steps=150)
    epitome, statistics, history = fit_epitome([tile], chosen, run=Run(device="cpu"))
    feed = EpitomeFeed([tile], statistics, patch=5, count=200, seed=99)
    before = build_epitome(3, seed=0, size=15, patch=5)
    assert measure_use(epitome, feed, batches=3)[1] > measure_use(before, feed, batches=3)[1] + 0.3
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_promotion_lowers_the_share_of_positions_never_used(tile):
    shares = {}
    for promotion in (True, False):
        epitome, statistics, _ = fit_epitome([tile], settings(promotion=promotion, size=41), run=Run(device="cpu"))
        shares[promotion] = (epitome.visits == 0).float().mean().item()
        assert (int(epitome.resets) > 0) == promotion
        assert int(epitome.visits.sum()) == 60 * 32
        feed = EpitomeFeed([tile], statistics, patch=5, count=200, seed=99)
        shares[promotion, "after"] = measure_use(epitome, feed, batches=5)[0]
    assert shares[True] < shares[False] - 0.2
    assert shares[True, "after"] < shares[False, "after"]


def test_a_resumed_run_ends_with_the_same_weights(tile, tmp_path, monkeypatch):
    chosen = settings(steps=75, diversify=True)
    whole = fit_epitome([tile], chosen, run=Run(device="cpu"))[0]
    call = EpitomeFeed.__call__

    def interrupted(self, step):
        if step == 60:
            raise KeyboardInterrupt
        return call(self, step)

    monkeypatch.setattr(EpitomeFeed, "__call__", interrupted)
    with pytest.raises(TrainingInterruptedError, match="60 of 75"):
        fit_epitome([tile], chosen, run=Run(device="cpu"), checkpoint=tmp_path / "state")
    monkeypatch.setattr(EpitomeFeed, "__call__", call)
    resumed = fit_epitome([tile], chosen, run=Run(device="cpu"), checkpoint=tmp_path / "state")[0]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_diversification_learns_from_the_worst_quarter():
    epitome = build_epitome(1, seed=0, size=9, patch=3)
    learner = _Learner(epitome, settings(patch=3, size=9, diversify=True))
    patches = torch.randn(16, 1, 3, 3)
    likelihood = torch.logsumexp(epitome(patches), 1)
    kept = torch.logsumexp(learner(patches), 1)
    torch.testing.assert_close(kept.sort().values, likelihood.sort().values[:4])
    assert len(learner.eval()(patches)) == 16


def test_used_positions_get_no_gradient():
    epitome = build_epitome(1, seed=0, size=9, patch=1)
    with torch.no_grad():
        epitome.used[0, :5] = 1
    loss = EpitomeObjective(epitome, settings(patch=1, size=9))(epitome(torch.randn(8, 1, 1, 1)), None)
    loss.backward()
    assert epitome.mean.grad[0, 0, :5].abs().max() == 0
    assert epitome.mean.grad[0, 0, 5:].abs().max() > 0


def test_several_epitomes_form_one_mixture(tile):
    epitome = fit_epitome([tile], settings(epitomes=3, steps=20), run=Run(device="cpu"))[0]
    assert epitome.mean.shape == (3, 3, 15, 15)
    assert (epitome.visits.sum((1, 2)) > 0).all()


def test_errors(tile):
    with pytest.raises(InputError, match="no tile"):
        fit_epitome([], run=Run(device="cpu"))
    with pytest.raises(InputError, match="without a gap"):
        fit_epitome([tile], settings(size=71, patch=71), run=Run(device="cpu"))
    with pytest.raises(ValidationError, match="odd"):
        settings(patch=4)
