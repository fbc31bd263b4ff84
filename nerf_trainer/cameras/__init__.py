"""Pinhole cameras, camera paths."""
