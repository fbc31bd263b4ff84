"""Where a run's data comes from: datasets and the loaders that read them."""

from abc import abstractmethod
from typing import Literal

from omegaconf import MISSING

from nerf_trainer.config import ReplaceableBase, choice, registry
from nerf_trainer.data.loader_maps import DataLoaderMapProviderBase
from nerf_trainer.data.loaders import DataLoaderMap
from nerf_trainer.data.splits import DatasetMap, DatasetMapProviderBase


class DataSourceBase(ReplaceableBase):
    """Gives a run its datasets and loaders."""

    @abstractmethod
    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        """The splits and a loader for each; nothing is decoded before a loader is placed.

        Raises:
            DataError: the dataset is missing, damaged or breaks its format's rules.
        """


@registry.register
class ImplicitronDataSource(DataSourceBase):
    """Datasets by one provider, loaders over them by another."""

    dataset_map_provider: DatasetMapProviderBase = choice(MISSING)
    """The format of the data."""
    data_loader_map_provider: DataLoaderMapProviderBase = choice("SequenceDataLoaderMapProvider")
    """How frames are drawn from it."""
    on_bad_frame: Literal["error", "skip"] = "error"
    """What to do about frames whose image is missing or damaged: end with a message, or leave out up to 5 % of them
    (every image is then decoded once to find them)."""

    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        if self.on_bad_frame == "skip":
            self.dataset_map_provider.leave_out_bad_frames()
        datasets = self.dataset_map_provider.get_dataset_map()
        return datasets, self.data_loader_map_provider.get_data_loader_map(datasets)
