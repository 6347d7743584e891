"""The Video Former against equations that are not ours."""

import pytest
import torch

from vampo_core.policy.vpp.video_former import QueryAttention, VideoFormer


def make_former(depth=2):
    torch.manual_seed(0)
    return VideoFormer((3, 5, 4, 2), width=16, num_queries=2, depth=depth, num_heads=2)


def test_query_attention_is_multi_head_attention():
    torch.manual_seed(0)
    ours, expected = QueryAttention(16, num_heads=4), torch.nn.MultiheadAttention(16, num_heads=4, batch_first=True)
    with torch.no_grad():
        projections = (ours.query, ours.key, ours.value)
        expected.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        expected.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(16), ours.value.bias]))
        expected.out_proj.load_state_dict(ours.output.state_dict())
    queries, pixels = torch.randn(3, 2, 16, requires_grad=True), torch.randn(3, 7, 16, requires_grad=True)
    results = ours(queries, pixels), expected(queries, pixels, pixels)[0]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), (queries, pixels)) for result in results]
    torch.testing.assert_close(*gradients)


def test_queries_look_at_their_own_frame_and_then_over_time():
    former = make_former()
    features = torch.randn(2, 3, 5, 4, 2)
    changed = features.clone()
    changed[:, 2] += torch.randn(2, 5, 4, 2)
    tokens, others = (former(x).unflatten(1, (3, 2)) for x in (features, changed))
    assert tokens.shape == (2, 3, 2, 16)
    assert not torch.allclose(tokens[:, 0], others[:, 0], atol=1e-4)  # time carries it over
    with torch.no_grad():
        for layer in former.layers:
            layer.time.out_proj.weight.zero_()
    tokens, others = (former(x).unflatten(1, (3, 2)) for x in (features, changed))
    assert torch.allclose(tokens[:, :2], others[:, :2], atol=1e-6)
    assert not torch.allclose(tokens[:, 2], others[:, 2], atol=1e-4)


def test_place_within_a_frame_counts():
    features = torch.randn(1, 3, 5, 4, 2)
    assert not torch.allclose(make_former()(features), make_former()(features.flip(3)), atol=1e-4)


def test_features_are_normalized_without_a_gradient():
    former, features = make_former(), torch.randn(1, 3, 5, 4, 2)
    torch.testing.assert_close(former(2 * features + 3), former(features), rtol=0, atol=1e-3)
    assert not former.embed[0](features.flatten(3).mT).requires_grad


def test_features_of_another_size():
    with pytest.raises(ValueError, match=r"features has shape \(1, 3, 5, 4, 4\), expected \[B, \*\[3, 5, 4, 2\]\]"):
        make_former()(torch.randn(1, 3, 5, 4, 4))
