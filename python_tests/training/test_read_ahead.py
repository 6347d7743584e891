"""Clips that are read ahead, as on a GPU: the same run, also when it is resumed."""

import threading
from types import SimpleNamespace

import pytest
import torch
from policy_runs import make_policy_trainer, policy_config
from training_processes import noisy_reward
from training_runs import assert_same_run, make_config, make_trainer

from vampo_core.data.prefetch import read_ahead
from vampo_core.policy import train
from vampo_core.training import predictor_clips


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_reads_ahead_is_bit_for_bit_the_same(tmp_path, monkeypatch, num_workers):
    """Its reward draws from the global generators, which reading does not touch."""
    settings = ["run.save_every=2", f"data.num_workers={num_workers}"]
    make_trainer(make_config(tmp_path / "plain", *settings), reward_funcs=[noisy_reward]).train()
    monkeypatch.setattr(predictor_clips, "batches_for", lambda device, loader: read_ahead(loader))
    parts = make_config(tmp_path / "ahead", *settings, "grpo.num_iterations=2")
    make_trainer(parts, reward_funcs=[noisy_reward]).train()
    again = make_trainer(make_config(tmp_path / "ahead", *settings), reward_funcs=[noisy_reward])
    again.train(resume_from=tmp_path / "ahead")
    assert_same_run(tmp_path / "ahead", tmp_path / "plain")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(tmp_path, monkeypatch, device):
    accelerator = SimpleNamespace(device=torch.device(device), process_index=0, num_processes=1)
    for module in (predictor_clips, train):
        monkeypatch.setattr(module, "batches_for", lambda device, loader: (device.type, loader.pin_memory))
    clips, policy = make_trainer(make_config(tmp_path)).clips, make_policy_trainer(policy_config(tmp_path))
    clips._accelerator = policy.accelerator = accelerator
    expected = (device, device == "cuda")
    assert (clips.batches(2, start_batch=0), policy.batches(0)) == (expected, expected)
