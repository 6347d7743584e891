"""Encoders of instructions."""
