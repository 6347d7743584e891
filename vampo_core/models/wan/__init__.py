"""The Wan family: a video transformer on a rectified flow, with the first latent frame given."""
