"""CO3D: annotations in JSON and SQLite, viewpoints, frames that are cropped and resized, the layouts v1 and v2."""
