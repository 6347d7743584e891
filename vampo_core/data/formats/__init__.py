"""Readers of data layouts, one file each."""
