"""What one of two processes does in the test of codes that they share; a module of its own, quick to import."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.conditioning.global_encoders import Autodecoder, SequenceAutodecoder
from nerf_trainer.data.loaders import ShuffledFrameLoader
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.frames import FrameData
from nerf_trainer.training.runtime import leave_ranks
from tests.scene_kit import orbit


class Named(DatasetBase):
    """Frames that have nothing but names."""

    frame_sequences = ("b", "a", "b", "a")
    frame_numbers = (0, 0, 1, 1)
    frame_types = ("known",) * 4
    image_paths = ("",) * 4

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> FrameData:
        return FrameData(cameras=self.cameras()[index], sequence_name=(self.frame_sequences[index],))

    def rgba(self, index: int) -> Tensor:
        raise AssertionError("nobody looks")

    def cameras(self) -> Cameras:
        return orbit(4)


def train_a_rank(rank: int, folder: str) -> None:
    """One step on this rank's share of the frames, wrapped as in training; writes what came of it."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(7)
    loader = ShuffledFrameLoader(Named(), batch_size=1, n_steps=0, num_workers=0)
    loader.place("cpu", 0, rank, world_size=2)
    made = SequenceAutodecoder(autodecoder=Autodecoder(encoding_dim=1, n_instances=3))
    made.learn_sequences(loader.contents.sequence_names)
    wrapped = torch.nn.parallel.DistributedDataParallel(made, find_unused_parameters=True)
    seen = [frames.sequence_name[0] for frames in loader.steps(0)]
    for frames in loader.steps(0):
        wrapped(frames).sum().backward()
    assert made.autodecoder.codes.grad is not None
    save_file({**made.state_dict(), "gradient": made.autodecoder.codes.grad}, f"{folder}/{rank}.safetensors")
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    del wrapped
    leave_ranks()
