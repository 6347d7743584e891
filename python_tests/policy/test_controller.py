"""The controller: episodes side by side, receding horizon and temporal ensembling."""

import numpy as np
import pytest
import torch
from policy_runs import ACTION_DIM, HORIZON, TEXT, make_policy, observe

from vampo_core.diffusion.streams import CONTROL, stream_seed
from vampo_core.ops import philox_normal
from vampo_core.policy.controller import PolicyController, ensemble


@pytest.mark.parametrize("batch_size", [None, 2])
def test_actions_do_not_depend_on_the_slots_beside(batch_size, set_num_threads):
    """The third of three slots is the only one in the second batch of two: the same to the bit in equal batches."""
    set_num_threads(1)
    policy = make_policy()
    together, alone = (PolicyController(policy, batch_size=batch_size) for _ in range(2))
    for slot in range(3):
        together.begin(slot, TEXT, seed=slot)
    alone.begin(7, TEXT, seed=2)
    for step in range(5):
        slots = range(3) if step < 3 else (0, 2)  # slot 1 has finished
        actions = together.act({slot: observe(10 * step + slot) for slot in slots})
        (action,) = alone.act({7: observe(10 * step + 2)}).values()
        np.testing.assert_allclose(actions[2], action, rtol=1e-5, atol=1e-3)
        assert batch_size is None or np.array_equal(actions[2], action)
        assert actions.keys() == set(slots) and not np.array_equal(actions[0], actions[2])


def test_noise_follows_from_seed_and_step():
    policy, noises = make_policy(), []
    original = policy.sample_actions
    policy.sample_actions = lambda states, condition, noise: noises.append(noise) or original(states, condition, noise)
    controller = PolicyController(policy, num_executed_steps=1)
    for seed in (3, 3, 4):
        controller.begin(0, TEXT, seed)
        for _ in range(2):
            controller.act({0: observe()})
    first, second, again, _, other, _ = noises
    assert torch.equal(first, again) and not torch.equal(first, second) and not torch.equal(first, other)
    key = stream_seed(3, CONTROL, 1)  # trained policies act as they did only if the formula stays
    assert torch.equal(second, philox_normal((1, 1, 1, 1, HORIZON, ACTION_DIM), seed=key)[0, 0, 0])


class Numbered:
    """Stands for a policy whose k-th chunk is 100 k, 100 k + 1, ..."""

    def __init__(self, settings):
        self.settings, self.num_chunks = settings, 0

    def predict(self, observations, instructions, seeds):
        self.num_chunks += 1
        chunk = 100.0 * self.num_chunks + np.arange(HORIZON, dtype=np.float32)
        return np.repeat(chunk[None, :, None], ACTION_DIM, axis=2)


def play(num_steps, **options):
    controller = PolicyController(Numbered(make_policy("latents").settings), **options)
    controller.begin(0, TEXT, 0)
    return [controller.act({0: observe()})[0][0].item() for _ in range(num_steps)]


def test_receding_horizon():
    assert play(7, num_executed_steps=3) == [100, 101, 102, 200, 201, 202, 300]
    assert play(3) == [100, 101, 200]  # the policy's own setting
    assert play(8, num_executed_steps=HORIZON) == [100, 101, 102, 103, 104, 105, 200, 201]


@pytest.mark.parametrize("num_executed_steps", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_temporal_ensembling(num_executed_steps, decay):
    """ACT's, written out: at step t every chunk begun at s <= t < s + H predicts; w_i = exp(-m i), oldest first."""
    actual = play(12, num_executed_steps=num_executed_steps, temporal_ensemble=decay)
    for t, action in enumerate(actual):
        predictions = [
            100 * (s // num_executed_steps + 1) + t - s for s in range(0, t + 1, num_executed_steps) if t < s + HORIZON
        ]
        weights = [np.exp(-decay * i) for i in range(len(predictions))]
        expected = sum(w * p for w, p in zip(weights, predictions, strict=True)) / sum(weights)
        assert action == pytest.approx(expected, rel=1e-6)


def test_ensemble_of_one_is_itself():
    assert np.array_equal(ensemble(np.array([[1.5, 2.5]]), 0.3), np.array([1.5, 2.5], np.float32))


def test_wrong_use():
    policy = Numbered(make_policy("latents").settings)
    with pytest.raises(ValueError, match=r"slot 3, expected begin\(3"):
        PolicyController(policy).act({3: observe()})
    with pytest.raises(ValueError, match="num_executed_steps is 7, expected 1 to 6"):
        PolicyController(policy, num_executed_steps=7)
    with pytest.raises(ValueError, match="batch_size is 0"):
        PolicyController(policy, batch_size=0)
