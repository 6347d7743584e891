"""Held-out metrics of predictors, episodes in simulators, statistics, pictures."""
