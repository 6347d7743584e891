"""From a predictor's features to actions: Video Former, diffusion action head, and the policy made of both."""
