"""All metrics, one line each: its title, which way is better, and how its values are written."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """What tables, charts and verdicts need to know about a metric."""

    title: str
    """Name for people, with the unit."""
    higher_is_better: bool
    digits: int = 4
    """Digits after the decimal point."""
    has_share: bool = True
    """Whether a change as a share of the value means something: not for decibels, nor for values around 0."""
    ideal: float | None = None
    """The best value there is, where more can be too much; ``higher_is_better`` holds below it."""
    in_charts: bool = True
    """Whether it is drawn frame by frame; not where it is only the difference of two others."""

    @property
    def spec(self) -> str:
        """How its values are formatted."""
        return f".{self.digits}f"


METRICS: dict[str, MetricInfo] = {
    "l1": MetricInfo(title="Latent L1", higher_is_better=False),
    "cosine": MetricInfo(title="Latent cosine", higher_is_better=True),
    "reward": MetricInfo(title="Reward", higher_is_better=True, has_share=False, in_charts=False),
    "psnr": MetricInfo(title="PSNR, dB", higher_is_better=True, digits=2, has_share=False),
    "ssim": MetricInfo(title="SSIM", higher_is_better=True),
    "motion_ratio": MetricInfo(title="Motion, of the expert's", higher_is_better=True, digits=3, ideal=1.0),
    "action_error": MetricInfo(title="Action error (judge)", higher_is_better=False),
    "action_ratio": MetricInfo(title="Action length, of the expert's", higher_is_better=True, digits=3, ideal=1.0),
    "decoder_error": MetricInfo(title="Action error (reward's decoder)", higher_is_better=False),
    "action_l1": MetricInfo(title="Action L1", higher_is_better=False),
    "action_mse": MetricInfo(title="Action MSE", higher_is_better=False),
}
"""Metrics by the name that results, ``metrics.jsonl`` and tables use, in the order in which they are shown."""


def share_of(metric: str, difference: float, before: float) -> float | None:
    """``difference`` as a share of ``before``; None where that means nothing."""
    return difference / abs(before) if METRICS[metric].has_share and before else None
