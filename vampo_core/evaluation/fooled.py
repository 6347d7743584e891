"""Whether a model has learned to please the decoder that rewards it, and nobody else."""

from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import outcome


def fooled_decoder(before: EvalResult, after: EvalResult) -> str | None:
    """A warning where the action error fell under the reward's decoder, but not under the judge; otherwise None.

    Args:
        before: result of the base.
        after: result of the trained model, on the same clips.
    """
    old, new = before.metrics, after.metrics
    if not {"decoder_error", "action_error"} <= old.keys() & new.keys():
        return None
    fell = {name: outcome(before, after, name) == "better" for name in ("decoder_error", "action_error")}
    if not fell["decoder_error"] or fell["action_error"]:
        return None
    decoder, judge = (f"{old[name].mean:.4f} to {new[name].mean:.4f}" for name in fell)
    return (
        f"the action error fell under the reward's decoder ({decoder}), but not clearly under the judge ({judge}): the "
        "videos may be fooling the reward"
    )
