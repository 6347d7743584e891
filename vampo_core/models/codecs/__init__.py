"""Codecs between video frames and latents."""
