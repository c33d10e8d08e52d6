"""The shape of the miniature: the same classes as the full model, 12 M parameters in all."""

from dreamoving_cli.models.config import MotionConfig, PackConfig, SchedulerConfig, VaeConfig

VOCABULARY = 768  # bytes and the words of our captions
WORDS = 40  # text tokens
WIDTHS = (96, 112)
CROSS = 128


def mini_config() -> PackConfig:
    """16 pixels a latent cell, 32 latent channels, two levels, two controls, three image prompts."""
    plus = {"projection": "plus", "tokens": 6, "depth": 1, "dim_head": 32, "heads": 4, "ff_mult": 2}
    hint = {
        "conditioning_channels": 48,
        "conditioning_embedding_out_channels": [24, 32, 64],
        "mid_block_type": "UNetMidBlock2D",
    }
    return PackConfig(
        name="mini",
        unet={
            "in_channels": 32,
            "out_channels": 32,
            "block_out_channels": list(WIDTHS),
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": CROSS,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
        },
        motion=MotionConfig(positions=("down.1", "mid", "up"), heads=4, groups=16),
        controls={"pose": dict(hint), "depth": dict(hint)},
        controlnet_motion=True,
        guider={kind: dict(plus) for kind in ("face", "cloth", "style")},
        text={
            "vocab_size": VOCABULARY,
            "hidden_size": CROSS,
            "intermediate_size": 2 * CROSS,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": WORDS,
            "bos_token_id": VOCABULARY - 2,
            "eos_token_id": VOCABULARY - 1,
            "pad_token_id": VOCABULARY - 1,
        },
        image={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 16,
        },
        vae=VaeConfig(
            kwargs={
                "in_channels": 192,
                "out_channels": 48,
                "latent_channels": 8,
                "encoder_block_out_channels": [96],
                "decoder_block_out_channels": [80, 80],
                "num_encoder_blocks": [2],
                "num_decoder_blocks": [3, 2],
            },
            patch=8,
            patch_out=4,
            latent_patch=2,
        ),
        scheduler=SchedulerConfig(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            steps_offset=0,
        ),
        context_frames=64,
        shared_noise=1.0,
        anchor_frames=3,
        max_pixels=256 * 448,
    )
