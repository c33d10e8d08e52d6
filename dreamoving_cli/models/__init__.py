"""The networks: 2D blocks from diffusers, time, image prompts and the walk through them from us."""
