"""A file like tiny_nerf_data.npz out of any scene in Blender format, for the recipe nerf_tiny.

    python examples/make_tiny_nerf_data.py /path/to/nerf_synthetic/lego lego.npz

Views of transforms_train.json come first, then those of val and test, as many as the file is to hold; each is shrunk to
about 100 x 100 pixels by averaging blocks, and laid on black.
"""

import sys
from pathlib import Path

import numpy as np

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.splits import DatasetBase

N_VIEWS = 106
"""Views of the notebooks' file: 100 to train on, six more."""
SIZE = 100
"""Width that images are shrunk to, or a little more, pixels."""


def make(folder: Path, file: Path, n_views: int = N_VIEWS, size: int = SIZE) -> int:
    """Write the file; answers how many views it holds.

    Args:
        folder: a scene in Blender format.
        file: what to write, ending in .npz.
        n_views: how many views, if there are so many.
        size: the images' width in pixels; where no whole number of pixels gives it, the next larger width that does.
    """

    def read(factor: int) -> list[DatasetBase]:
        provider = BlenderDatasetMapProvider(
            base_dir=str(folder), object_name=folder.name, downscale_factor=factor, load_depth=False
        )
        return [split for _, split in provider.get_dataset_map().items()]

    width = int(read(1)[0].image_sizes_hw[0, 1])
    images, poses, focals = [], [], set()
    for split in read(max(1, width // size)):
        cameras = split.cameras()
        focals |= {focal for pair in cameras.focal.tolist() for focal in pair}
        for i in range(min(len(split), n_views - len(images))):
            rgba = split.rgba(i).numpy().astype(np.float32) / 255
            pose = np.eye(4, dtype=np.float32)
            # OpenCV's axes (right, down, forward) to Blender's (right, up, back).
            pose[:3, :3] = cameras.R[i].T.numpy() * np.array([1, -1, -1], np.float32)
            pose[:3, 3] = cameras.centers[i].numpy()
            images.append(rgba[..., :3] * rgba[..., 3:])
            poses.append(pose)
    if len(focals) != 1:
        raise SystemExit(f"{folder}: found {len(focals)} focal lengths, expected one for all views and both axes")
    np.savez(file, images=np.stack(images), poses=np.stack(poses), focal=np.float64(focals.pop()))
    return len(images)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/make_tiny_nerf_data.py FOLDER FILE.npz")
    n = make(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{n} views in {sys.argv[2]}")
