"""What newcomers type into the search box of the site leads to the answer. The site is what `make docs` built."""

import pytest
from built_site import SITE, unfit
from doc_pages import ROOT, anchors
from site_search import CHROMIUM, open_page, search

TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"


pytestmark = [
    pytest.mark.skipif(unfit() is not None, reason=str(unfit())),
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium (Debian: apt install chromium)"),
]

QUESTIONS = {
    "ImportError _C undefined symbol": "cannot-import",
    "no CUDA operators GPU not used": "my-gpu-is-not-used",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device": "no-kernel-image",
    "pip installs wrong torch version": "pip-downloads",
    "ImportError: Cannot initialize a EGL device display": "mujoco_gl",
    "mujoco gladLoadGL error headless": "mujoco_gl",
    "libGL.so.1 cannot open shared object file": "libglso1",
    "lerobot dataset v2.1": "my-lerobot",
    "which camera": "which-camera",
    "could not decode AV1 video": "av1",
    "dataloader slow": "data-loading-is-slow",
    "damaged episode skipped": "episodes-are-skipped",
    "action normalization unnorm_key": "how-are-actions-normalized",
    "loss 0 grpo": "the-loss-is-0",
    "ratio not 1 at first step": "the-ratio-is-not-1",
    "reward does not increase": "the-reward-is-flat",
    "advantages all zero": "all-advantages-are-zero",
    "reward hacking": "the-reward-goes-up",
    "blurry videos": "predicted-videos-are-blurry",
    "kl divergence explodes": "kl-explodes",
    "nan loss bf16": "nan-or-inf",
    "CUDA out of memory rollout": "cuda-out-of-memory",
    "umt5 text encoder memory wan": "wans-text-encoder",
    "how long does training take": "how-long-does-it-take",
    "slow on cpu": "it-is-slow-on-the-cpu",
    "disk full checkpoints": "disk-full",
    "continue stopped run": "how-do-i-continue",
    "run.dir holds a run already": "holds-a-run-already",
    "resume from checkpoint different loss curve": "the-resumed-run",
    "setting has no effect": "my-setting-has-no-effect",
    "compare two runs": "how-do-i-compare",
    "multi gpu hangs NCCL timeout": "multi-gpu-training-hangs",
    "accelerate config deepspeed": "what-should-accelerate",
    "LoRA SVD target modules": "lora-on-svd",
    "load trained model in diffusers pipeline": "how-do-i-load",
    "custom reward function": "how-do-i-use-my-own",
    "own simulator": "how-do-i-use-my-own",
    "success rate 0 low loss": "success-rate-is-0",
    "success rate variance evaluation episodes": "the-success-rate-differs",
}
"""What is typed, in words of issues about comparable tools, and how the anchor of the answer begins."""


def test_every_question_is_asked():
    asked = set(QUESTIONS.values())
    headings = {anchor for anchor in anchors(TROUBLESHOOTING) if "-" in anchor} - {"memory-and-time", "several-gpus"}
    answered = {next((start for start in asked if anchor.startswith(start)), anchor) for anchor in headings}
    assert answered - {"the-robot"} == asked and len(asked) >= 30


def test_answers_are_found(tmp_path):
    """The answer is among the first three sections that the page shows, and the page among the first three."""
    missed = {}
    for (query, start), pages in zip(QUESTIONS.items(), search(SITE, list(QUESTIONS), tmp_path), strict=True):
        sections = [entry for page in pages[:3] for entry in [e for e in page if "#" in e][:3]]
        if not any(section.startswith(f"troubleshooting.html#{start}") for section in sections):
            missed[query] = sections
    assert not missed


def test_a_word_that_is_nowhere_is_not_found(tmp_path):
    assert search(SITE, ["zyzzyva"], tmp_path) == [[]]


def test_the_search_box_opens_from_disk(tmp_path):
    shown = open_page(f"{(SITE / 'index.html').as_uri()}?q=umt5", tmp_path)
    assert "troubleshooting.html" in shown.partition("md-search-result__list")[2]
