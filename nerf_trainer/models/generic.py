"""GenericModel: scenes that are known by their source views, by learned codes, or by neither."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.conditioning.feature_extractor import FeatureExtractorBase
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.conditioning.view_sampler import SourceViews
from nerf_trainer.config import Factory, choice, nested, registry
from nerf_trainer.errors import ConfigError, DataError, shown
from nerf_trainer.fields.base import FieldInputs, ImplicitFunctionBase, as_fields
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.models.base import no_evaluation
from nerf_trainer.models.photographs import over
from nerf_trainer.models.ray_model import RayModel


@registry.register
class GenericModel(RayModel):
    """Fields that share their weights among scenes, conditioned on what the batch's other views show."""

    num_passes: int = 1
    """Passes, each with a field of its own, coarse to fine."""
    image_feature_extractor: FeatureExtractorBase | None = choice(None)
    """Turns source views into feature maps; null where no field looks at source views."""
    view_pooler: Factory[ViewPooler] | None = nested(enabled=False)
    """Looks up the samples of rays in the feature maps; needs an image_feature_extractor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_passes < 1:
            raise ConfigError(f"num_passes: {self.num_passes}, expected at least 1")
        self._pooler = self._make_pooler()
        spec = self.field_spec(
            pooled_dim=0 if self._pooler is None else self._pooler.pooled_dim,
            pooled_per_view=self._pooler is not None and self._pooler.keeps_views,
        )
        self._fields = torch.nn.ModuleList(self.implicit_function(spec=spec) for _ in range(self.num_passes))
        self.check_parts()

    def _make_pooler(self) -> ViewPooler | None:
        extractor, pooler = self.image_feature_extractor, self.view_pooler
        if (extractor is None) != (pooler is None):
            found, missing = (
                ("view_pooler_enabled: true", "image_feature_extractor_class_type to ResNetFeatureExtractor")
                if extractor is None
                else ("image_feature_extractor_class_type without a view pooler", "view_pooler_enabled to true")
            )
            raise ConfigError(f"{found}: source views need both; set {missing}, or leave both out")
        return None if extractor is None or pooler is None else pooler(feature_dims=extractor.feature_dims)

    def inputs(self, views: FrameData, frames: FrameData) -> FieldInputs:
        pool = None if self._pooler is None else partial(self._pooler, self._source_views(views, frames))
        return FieldInputs(cameras=views.cameras, pool=pool, global_code=self.global_code(views))

    def _source_views(self, views: FrameData, frames: FrameData) -> SourceViews:
        """Extract features of every frame of the batch; the targets are among them and told apart by a mask.

        Raises:
            DataError: the batch has no images, or no other view of its target's sequence; of several targets, in
                training, one must have some.
        """
        assert self.image_feature_extractor is not None
        if frames.image_rgb is None:
            raise DataError("the batch has no images, which a model with a view pooler looks at")
        same = _same_sequence(views, frames)
        without = [i for i, row in enumerate(same) if sum(row) < 2]
        if without and (not self.training or len(without) == len(views)):
            name = f" of {shown(frames.sequence_name[without[0]])}" if frames.sequence_name else ""
            raise DataError(
                f"the batch has one view{name}, expected source views of the same sequence beside the target; set"
                " images_per_seq_options of the loader for training, n_known_frames_for_test of the dataset for"
                " evaluation"
            )
        images, alpha = self._masked_images(frames.image_rgb, frames.fg_probability), frames.fg_probability
        return SourceViews(
            maps=self.image_feature_extractor(images, alpha),
            cameras=frames.cameras,
            fg_probability=alpha,
            mask_crop=frames.mask_crop,
            # Pinned, so that the host does not wait for the device.
            same_sequence=torch.tensor(same, pin_memory=images.is_cuda).to(images.device, non_blocking=True),
            is_target=torch.eye(len(views), len(frames), dtype=torch.bool, device=images.device),
        )

    def _masked_images(
        self, images: Float[Tensor, "V 3 H W"], alpha: Float[Tensor, "V 1 H W"] | None
    ) -> Float[Tensor, "V 3 H W"]:
        """Source images as the targets are: on `bg_color` where the model masks images."""
        behind = self._bg_color.expand(images.shape[0], *images.shape[2:], -1)
        channels_last = alpha.permute(0, 2, 3, 1) if alpha is not None and self.mask_images else None
        return over(images.permute(0, 2, 3, 1), channels_last, behind, self.mask_threshold).permute(0, 3, 1, 2)

    def passes(self) -> Sequence[ImplicitFunctionBase]:
        return as_fields(self._fields)

    def not_capturable(self) -> str | None:
        """Source views come from the host with each batch, and their sizes and sequences are looked at there."""
        return super().not_capturable() or (None if self._pooler is None else type(self._pooler).__name__)

    @property
    def looks_at_source_views(self) -> bool:
        return self._pooler is not None

    def check_data(
        self, train: FrameContents, val: FrameContents | None = None, test: FrameContents | None = None
    ) -> tuple[str, ...]:
        if self.looks_at_source_views:
            _check_source_views(train, val, test)
        extractor = self.image_feature_extractor
        return (*super().check_data(train, val, test), *(() if extractor is None else extractor.notices))


def _check_source_views(train: FrameContents, val: FrameContents | None, test: FrameContents | None) -> None:
    """Refuse batches that may leave a target without views to look at.

    Raises:
        ConfigError: there are such, in training or in evaluation.
    """
    if train.is_resident:
        raise ConfigError(
            "view_pooler_enabled: true on a resident scene, which comes without images to look at; expected"
            " SequenceDataLoaderMapProvider with images_per_seq_options"
        )
    if train.fewest_source_views == 0:
        raise ConfigError(
            "images_per_seq_options: training batches may have a single view of the target's sequence, expected source"
            " views beside it for view_pooler_enabled: true; set images_per_seq_options of"
            " SequenceDataLoaderMapProvider to numbers of at least 2 and batch_size no lower, and train on sequences"
            " of as many images"
        )
    for split, contents in (("val", val), ("test", test)):
        if contents is not None and contents.fewest_source_views == 0:
            raise ConfigError(
                f"n_known_frames_for_test: {split} has views without source views of their sequence, which"
                " view_pooler_enabled: true looks at; set n_known_frames_for_test of the dataset to at least 1, or"
                f" {no_evaluation(split)}"
            )


def _same_sequence(views: FrameData, frames: FrameData) -> list[list[bool]]:
    """For each target, which frames show its sequence; all of them where sequences have no names."""
    if not frames.sequence_name:
        return [[True] * len(frames) for _ in range(len(views))]
    return [[name == other for other in frames.sequence_name] for name in views.sequence_name]
