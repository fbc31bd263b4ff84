"""Rays: the bundle that travels through the pipeline, and how rays and samples are drawn."""
