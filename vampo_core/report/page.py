"""The page: sections, style and script in one file that needs nothing else."""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path

import torch

from vampo_core._extension import version
from vampo_core.pipeline.summary import PRETRAINED, RunSummary
from vampo_core.report import sections


def render(run: RunSummary) -> str:
    """The report as HTML."""
    name = escape(Path(run.config.run.dir).resolve().name)
    parts = [
        sections.verdict(run),
        section("Held-out metrics", sections.metrics_table(run)),
        section("Predictions", sections.videos(run), "videos"),
        section("Frame by frame, clip by clip", sections.frame_charts(run)),
        section("Training", sections.training_charts(run)),
        details("Diagnostics", sections.diagnostic_charts(run)),
        section("Time and memory", sections.timing(run)),
        details("Configuration", f"<pre>{escape(run.config.to_yaml())}</pre>"),
    ]
    return document(name, _kind(run), _facts(run), parts, _footer(run))


def document(name: str, kind: str, facts: str, parts: Sequence[str], footer: str) -> str:
    """A page of sections; every argument is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{name} · {kind}</title><style>{_asset("style.css")}</style></head>'
        "<body><main>"
        f'<header class="top"><p class="kicker">{kind}</p><h1>{name}</h1>'
        f'<p class="muted">{facts}</p>'
        f'</header>{"".join(parts)}<footer class="muted">{footer}</footer></main>'
        f"<script>{_asset('script.js')}</script></body></html>\n"
    )


def _kind(run: RunSummary) -> str:
    return "Pretraining" if run.result_name == PRETRAINED else "VAMPO post-training"


def _facts(run: RunSummary) -> str:
    grpo, pretrain = run.config.grpo, run.config.pretrain
    if run.result_name == PRETRAINED:
        facts = [f"checkpoint {run.step} of {pretrain.num_steps} steps", f"{pretrain.batch_size} clips a step"]
    else:
        facts = [
            f"checkpoint {run.step} of {grpo.num_iterations} iterations",
            f"{grpo.batch_size} clips of {grpo.num_generations} generations",
        ]
    facts.append(f"UNet of {run.num_parameters / 1e6:.3g} M parameters")
    if run.best_step != run.step:
        facts.append(f"best held-out reward at {run.best_step}")
    return escape(" · ".join(facts))


def _footer(run: RunSummary) -> str:
    base = f"base model {run.base}" if run.base else "base model not found, its recorded metrics are shown"
    return f"{versions()} · {escape(base)}"


def versions() -> str:
    """What made a page, and when."""
    now = datetime.now().strftime("%Y-%m-%d %H:%M")
    return escape(f"vampo_core {version()} · torch {torch.__version__} · {now}")


def section(title: str, content: str, name: str = "") -> str:
    """A section under a title; nothing without content."""
    identity = f' id="{name}"' if name else ""
    return f"<section{identity}><h2>{title}</h2>{content}</section>" if content else ""


def details(title: str, content: str) -> str:
    """A section that opens on a click; nothing without content."""
    return f'<details class="section"><summary><h2>{title}</h2></summary>{content}</details>' if content else ""


def _asset(name: str) -> str:
    return (files("vampo_core") / "report" / name).read_text(encoding="utf-8")
