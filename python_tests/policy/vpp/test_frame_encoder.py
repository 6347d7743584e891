"""The frame encoder: it learns soon where a thing is, and takes frames of any size."""

import torch

from vampo_core.policy.vpp.frame_encoder import FrameEncoder


def test_where_a_thing_lies_is_learned_soon():
    """0.39 is the variance of the places."""
    torch.manual_seed(0)
    encoder, output = FrameEncoder((8, 12, 12), width=32), torch.nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *output.parameters()], lr=1e-3)

    def error(num_frames):
        latents, places = torch.randn(num_frames, 8, 12, 12), torch.randint(12, (num_frames, 2))
        latents[range(num_frames), :, places[:, 0], places[:, 1]] = torch.tensor([3.0, -3.0] * 4)
        return (output(encoder(latents)[:, 0]) - (places / 5.5 - 1)).square().mean()

    for _ in range(200):
        optimizer.zero_grad()
        error(32).backward()
        optimizer.step()
    assert error(256).item() < 0.1


def test_large_frames_are_averaged():
    encoder = FrameEncoder((4, 40, 64), width=16)  # SVD's 320 x 512 px, by squares of 4 x 4
    assert encoder(torch.randn(2, 4, 40, 64)).shape == (2, 1, 16)
    assert encoder.layers[-2].in_features == 32 * 10 * 16
    assert FrameEncoder((4, 33, 7), width=16)(torch.randn(2, 4, 33, 7)).shape == (2, 1, 16)
