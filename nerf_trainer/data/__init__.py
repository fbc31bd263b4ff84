"""Datasets: from files of many formats to frames in the project's conventions."""
