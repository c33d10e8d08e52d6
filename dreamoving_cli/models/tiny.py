"""The same networks, tiny: a pack that renders noise in seconds on one core. For tests and dry runs."""

from dreamoving_cli.models.config import MotionConfig, PackConfig, SchedulerConfig, VaeConfig

TOKENS = 514  # the byte-level tokenizer's


def tiny_config() -> PackConfig:
    """Two levels, 16 pixels a latent cell, pose and depth, all three kinds of image prompt."""
    plus = {"projection": "plus", "tokens": 4, "depth": 1, "dim_head": 16, "heads": 2, "ff_mult": 2}
    return PackConfig(
        name="tiny",
        unet={
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        motion=MotionConfig(heads=4),
        controls={
            kind: {"conditioning_embedding_out_channels": [4, 8, 8, 8, 16]} for kind in ("pose", "depth")
        },
        guider={kind: dict(plus) for kind in ("face", "cloth", "style")},
        text={
            "vocab_size": TOKENS,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": TOKENS - 2,
            "eos_token_id": TOKENS - 1,
            "pad_token_id": TOKENS - 1,
        },
        image={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        vae=VaeConfig(
            kwargs={
                "in_channels": 12,
                "out_channels": 12,
                "latent_channels": 4,
                "encoder_block_out_channels": [8, 8, 8, 8],
                "decoder_block_out_channels": [8, 8, 8, 8],
                "num_encoder_blocks": [1, 1, 1, 1],
                "num_decoder_blocks": [1, 1, 1, 1],
            },
            patch=2,
        ),
        scheduler=SchedulerConfig(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            steps_offset=0,
        ),
        context_frames=16,
        anchor_frames=1,
    )
