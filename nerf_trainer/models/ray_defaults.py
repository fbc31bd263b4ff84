"""What models that render along rays log and weigh where nothing else is said."""

TRAINER_LOG_VARS = ("objective", "epoch", "sec/it")
"""Names that the training loop adds to a model's metrics."""

DEFAULT_LOG_VARS = (
    "loss_rgb_psnr_fg",
    "loss_rgb_psnr",
    "loss_rgb_mse",
    "loss_rgb_huber",
    "loss_depth_abs",
    "loss_depth_abs_fg",
    "loss_mask_neg_iou",
    "loss_mask_bce",
    "loss_mask_beta_prior",
    "loss_eikonal",
    "loss_density_tv",
    "loss_depth_neg_penalty",
    "loss_autodecoder_norm",
    "loss_prev_stage_rgb_mse",
    "loss_prev_stage_rgb_psnr_fg",
    "loss_prev_stage_rgb_psnr",
    "loss_prev_stage_mask_bce",
    *TRAINER_LOG_VARS,
)


def default_loss_weights() -> dict[str, float]:
    """The reference's weights: colour in both passes."""
    return {"loss_rgb_mse": 1.0, "loss_prev_stage_rgb_mse": 1.0, "loss_mask_bce": 0.0, "loss_prev_stage_mask_bce": 0.0}
