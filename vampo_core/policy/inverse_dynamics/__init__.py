"""Inverse dynamics: actions read from videos, and a policy that acts on the video it imagines."""
