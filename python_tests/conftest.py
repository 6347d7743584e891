"""Fixtures that several files share, and how much hypothesis draws."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from vampo_core import _extension

settings.register_profile(
    "operators", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("operators")

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def pytest_configure(config):
    if num_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they share the cores, with what they start
        torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    config.addinivalue_line("markers", "requires_kernels: needs the compiled operators")
    config.addinivalue_line("markers", "requires_cuda: needs a CUDA device and the compiled CUDA operators")


def pytest_collection_modifyitems(items):
    compiled = _extension.LOADED
    with_cuda = compiled and torch.cuda.is_available() and _extension.build_info()["cuda"]
    no_kernels = pytest.mark.skip(reason="the compiled operators are not built")
    no_cuda = pytest.mark.skip(reason="no CUDA device with compiled CUDA operators")
    for item in items:
        if item.get_closest_marker("requires_kernels") and not compiled:
            item.add_marker(no_kernels)
        if item.get_closest_marker("requires_cuda") and not with_cuda:
            item.add_marker(no_cuda)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    """Every device there is; session-scoped, so that hypothesis may share it between examples."""
    return request.param


@pytest.fixture
def set_num_threads():
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler():
    """An empty torch.compile cache before and after the test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Configuration of a finished run on recorded episodes, whose folder tests only read."""
    import tiny_run

    import vampo_core

    folder = tmp_path_factory.mktemp("tiny_run")
    tiny_run.write_dataset(folder / "data")
    config = tiny_run.settings(folder)
    vampo_core.train(config)
    return config


@pytest.fixture(scope="session")
def codec():
    """A patch codec of four channels, for frames of 32 pixels; nobody trains it."""
    from vampo_core.models import PatchCodec

    generator = torch.Generator().manual_seed(0)
    return PatchCodec.fit(torch.rand(40, 3, 32, 32, generator=generator), patch_size=4, latent_channels=4)


@pytest.fixture(scope="session")
def svd_folder(tmp_path_factory):
    """A tiny model in the layout of Stable Video Diffusion, which tests only read."""
    import svd_folder

    folder = tmp_path_factory.mktemp("svd") / "model"
    svd_folder.make_svd_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A tiny CLIP text model as VPP uses it, which tests only read."""
    import svd_folder

    return svd_folder.make_clip_text_folder(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """A tiny model in the layout of Wan2.2-TI2V, which tests only read."""
    import wan_folder

    return wan_folder.make_folder(tmp_path_factory.mktemp("wan") / "model")
