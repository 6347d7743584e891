"""model.compile: the same numbers, and as many graphs as there are shapes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_runs import gradient_of, make_clips, make_config, make_model, make_trainer, relative_distance

from vampo_core.config import load_config
from vampo_core.diffusion.rows import padded
from vampo_core.pipeline import predictor as predictors


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_model(config, backend):
    model = make_model(config)
    model.compile_denoiser(backend=backend)
    return model


def test_one_graph_for_the_update_and_one_for_the_tail(tmp_path):
    # 2 clips, 4 generations, 3 levels behind the split: chunks of 3 rows, the last one filled up
    config = make_config(tmp_path, "sampler.tail_chunk_size=3")
    counter = CompileCounter()
    trainer = make_trainer(config, model=compiled_model(config, counter))
    batches = trainer.batches(0)
    trainer.iterate(1, batches)
    graphs = counter.frame_count
    trainer.iterate(2, batches)
    assert counter.frame_count == graphs, "neither noise levels nor new weights compile again"
    torch._dynamo.reset()
    counter.clear()
    whole = make_config(tmp_path, "sampler.tail_chunk_size=4")  # nothing to fill up
    trainer = make_trainer(whole, model=compiled_model(whole, counter))
    trainer.iterate(1, trainer.batches(0))
    assert counter.frame_count == graphs


@pytest.mark.parametrize("overrides", [[], ["grpo.credit=pathwise", "sampler.sigma_max=10", "sampler.sigma_min=0.5"]])
def test_the_gradient_is_that_of_the_eager_denoiser(tmp_path, overrides):
    config = make_config(tmp_path, *overrides, "sampler.tail_chunk_size=3")
    eager = gradient_of(make_trainer(config))
    found = gradient_of(make_trainer(config, model=compiled_model(config, "aot_eager")))
    assert relative_distance(found, eager) < 1e-3


def test_many_shapes_and_models_are_compiled(tmp_path):
    config, graphs = make_config(tmp_path), []
    sample, clips = torch.randn(6, 3, 4, 4, 4), make_clips(8)
    for _ in range(2):
        counter = CompileCounter()
        model = compiled_model(config, counter)
        for rows in range(1, 7):
            condition = model.observed_condition(clips[0]["latents"][:1].repeat(rows, 1, 1, 1), ["push"] * rows)
            with torch.no_grad():
                model(sample[:rows], 2.0, condition)
        graphs.append(counter.frame_count)
    assert graphs == [6, 6]


def test_a_compiled_model_is_saved_and_copied_like_any_other(tmp_path):
    config = make_config(tmp_path)
    model = compiled_model(config, "eager")
    model.save_pretrained(tmp_path / "model")
    assert list(model.state_dict()) == list(make_model(config).state_dict())
    assert not model.frozen_reference().is_compiled
    assert type(model).from_pretrained(tmp_path / "model").num_parameters == model.num_parameters


def test_the_setting_reaches_the_model(tmp_path, monkeypatch):
    config = load_config(make_config(tmp_path), "model.compile=true")
    model = make_model(config)
    assert not model.is_compiled
    model.save_pretrained(tmp_path / "model")
    for loaded in (
        predictors.load_predictor(config, tmp_path / "model"),
        predictors.new_predictor(config, model.codec),
    ):
        assert loaded.is_compiled


def test_rows_are_filled_up_and_cut_off_again():
    sizes = []

    def denoise(sample, sigma, clip_index):
        sizes.append(len(sample))
        return sample * sigma + clip_index.view(-1, 1), sample

    sample, clips = torch.randn(3, 2), torch.tensor([4, 5, 6])
    output, uncond = padded(denoise, 5)(sample, 2.0, clips)
    assert torch.equal(output, denoise(sample, 2.0, clips)[0]) and torch.equal(uncond, sample)
    assert padded(denoise, None) is denoise
    assert len(padded(denoise, 2)(sample, 2.0, clips)[0]) == 3
    assert sizes == [5, 3, 3]
