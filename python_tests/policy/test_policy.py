"""Policies: their folders, how they act, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from policy_runs import ACTION_DIM, HORIZON, SIZE, STATE_DIM, make_policy

from vampo_core import Policy
from vampo_core.policy.controller import PolicyController, ensemble

TEXT = "push the block"


def observe(number=0, **changes):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return {"pixels": pixels, "state": rng.random(STATE_DIM, dtype=np.float32), **changes}


def chunk_noise(num=1):
    return torch.randn(num, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("features", ["predictive", "latents"])
def test_round_trip(tmp_path, features):
    policy = make_policy(features)
    policy.save_pretrained(tmp_path)
    loaded = Policy.from_pretrained(tmp_path)
    assert loaded.settings == policy.settings and not loaded.training
    state, expected = loaded.state_dict(), policy.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    assert loaded.fingerprint() == policy.fingerprint()
    assert Policy.from_pretrained(tmp_path, dtype="bfloat16").fingerprint() != policy.fingerprint()
    actions = [p.predict([observe()], [TEXT], [5]) for p in (policy, loaded)]
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-3)  # convolutions round by where weights lie in memory
    assert actions[0].shape == (1, HORIZON, ACTION_DIM)
    assert (actions[0] >= [0, 100]).all() and (actions[0] <= [512, 300]).all()


@torch.no_grad()
def test_everything_observed_counts():
    policy, noisy, sigma = make_policy(), chunk_noise(), torch.ones(1)
    latents = [torch.randn(1, 4, 8, 8) for _ in range(2)]
    states = [torch.tensor([[t, 0.5, 1.0]]) for t in (1.0, 9.0)]

    def denoised(latent=0, state=0, text=TEXT):
        condition = policy.predictor.condition(instructions=[text], first_latents=latents[latent])
        return policy(noisy, sigma, states[state], condition)

    assert torch.equal(denoised(), denoised())
    for changed in ({"latent": 1}, {"state": 1}, {"text": "leave it alone"}):
        assert (denoised(**changed) - denoised()).abs().max() > 1e-4, changed


@torch.no_grad()
@pytest.mark.parametrize("features", ["predictive", "latents"])
def test_the_current_frame_has_a_token_of_its_own(features):
    policy, seen = make_policy(features), {}
    for name in ("former", "frame_encoder"):
        module = getattr(policy, name)
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    policy.head.condition = lambda tokens, text, states: seen.update(tokens=tokens)
    latents = torch.randn(2, 4, 8, 8)
    condition = policy.predictor.condition(instructions=[TEXT] * 2, first_latents=latents)
    policy._action_condition(torch.zeros(2, STATE_DIM), condition, None)
    assert torch.equal(seen["former"][0], policy.features(condition))
    torch.testing.assert_close(seen["frame_encoder"][0], latents)
    assert torch.equal(seen["tokens"], torch.cat([seen["former"][1], seen["frame_encoder"][1]], dim=1))


def test_the_control_runs_no_video_model(monkeypatch):
    policy = make_policy("latents")
    monkeypatch.setattr(policy.predictor.unet, "forward", None)
    condition = policy.predictor.condition(instructions=[TEXT], first_latents=torch.ones(1, 4, 8, 8))
    assert torch.equal(policy.features(condition), torch.ones(1, 1, 4, 8, 8))
    policy.act(observe(), TEXT)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_actions_do_not_depend_on_the_slots_beside(batch_size, set_num_threads):
    """Of three slots the third comes alone into the second batch of two: to the bit the same in batches of one size."""
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


class Numbered:
    """Stands for a policy whose k-th chunk is 100 k, 100 k + 1, ..."""

    def __init__(self, policy):
        self.settings, self.head, self.num_chunks = policy.settings, policy.head, 0

    def predict(self, observations, instructions, seeds):
        self.num_chunks += 1
        chunk = 100.0 * self.num_chunks + np.arange(HORIZON, dtype=np.float32)
        return np.repeat(chunk[None, :, None], ACTION_DIM, axis=2)


def play(num_steps, **options):
    controller = PolicyController(Numbered(make_policy("latents")), **options)
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


def test_act_is_one_slot_of_the_controller():
    policy = make_policy()
    controller = PolicyController(policy)
    for seed in (0, 5):
        policy.reset(seed)
        controller.begin(0, TEXT, seed)
        for step in range(3):
            assert np.array_equal(policy.act(observe(step), TEXT), controller.act({0: observe(step)})[0])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"pixels": np.zeros((SIZE, SIZE, 3), np.uint8)}, r"has keys \['pixels'\], expected 'pixels' and 'state'"),
        (observe(pixels=np.zeros((64, 64, 3), np.uint8)), r"\(64, 64, 3\) and type uint8, expected \(32, 32, 3\)"),
        (observe(pixels=np.zeros((SIZE, SIZE, 3), np.float32)), "type float32, expected .* uint8"),
        (observe(state=np.zeros(2, np.float32)), r"observation\['state'\] has shape \(2,\), expected \(3,\)"),
        (observe(state=np.array([0, np.nan, 1], np.float32)), "expected finite numbers"),
    ],
)
def test_wrong_observations(observation, message):
    with pytest.raises(ValueError, match=message):
        make_policy("latents").act(observation, TEXT)


def test_no_robot_is_sent_what_is_not_finite():
    policy = make_policy("latents")
    torch.nn.init.constant_(policy.head.output.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"predicts actions that are nan, expected finite numbers$"):
        policy.act(observe(), TEXT)


def test_wrong_use(tmp_path):
    policy = make_policy("latents")
    with pytest.raises(ValueError, match=r"slot 3, expected begin\(3"):
        PolicyController(policy).act({3: observe()})
    with pytest.raises(ValueError, match="num_executed_steps is 7, expected 1 to 6"):
        PolicyController(policy, num_executed_steps=7)
    with pytest.raises(ValueError, match="batch_size is 0"):
        PolicyController(policy, batch_size=0)
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a run folder or a checkpoint of one"):
        Policy.from_pretrained(tmp_path / "predictor")
    settings = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(settings | {"num_wheels": 4}))
    with pytest.raises(ValueError, match=r"policy.json cannot be read: .*num_wheels"):
        Policy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(settings | {"kind": "oracle"}))
    with pytest.raises(ValueError, match="policy kind is 'oracle', expected one of vpp"):
        Policy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "kind"}))
    assert Policy.from_pretrained(tmp_path).settings == policy.settings  # written before there were kinds
    (tmp_path / "policy.json").write_text(json.dumps(settings | {"architecture": 1}))
    with pytest.raises(ValueError, match=r"policy.json says architecture 1, expected 2: train the policy again"):
        Policy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(settings | {"width": 32}))
    with pytest.raises(ValueError, match=r"policy.safetensors cannot be loaded: .*frame_encoder\.layers"):
        Policy.from_pretrained(tmp_path)
