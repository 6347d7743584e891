"""Stable Video Diffusion's backbone: UNet, condition, features, folder."""
