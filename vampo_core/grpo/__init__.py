"""GRPO post-training of video predictors."""
