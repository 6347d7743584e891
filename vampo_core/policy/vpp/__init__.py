"""Policies on predictive features (VPP, arXiv 2412.14803)."""
