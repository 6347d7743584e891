"""Cosmos-Predict2.5: a video transformer on a rectified flow, with the first latent frame given."""
