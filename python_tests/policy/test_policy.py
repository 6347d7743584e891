"""Policies: their folders, how they act, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from policy_runs import ACTION_DIM, HORIZON, SIZE, TEXT, make_policy, observe

from vampo_core import Policy
from vampo_core.policy.controller import PolicyController


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


def test_folders_that_do_not_fit(tmp_path):
    policy = make_policy("latents")
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
    for text, message in (("{", "policy.json cannot be read: Expecting"), ("[]", "it holds list, expected an object")):
        (tmp_path / "policy.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Policy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(settings | {"architecture": 1}))
    with pytest.raises(ValueError, match=r"policy.json says architecture 1, expected 2: train the policy again"):
        Policy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(settings | {"width": 32}))
    with pytest.raises(ValueError, match=r"policy.safetensors cannot be loaded: .*frame_encoder\.layers"):
        Policy.from_pretrained(tmp_path)
