"""Renderers: from rays and fields to colours, depths and masks."""
