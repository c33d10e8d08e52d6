"""diffusers' AnimateDiffControlNetPipeline with our weights, on the same task.

Its motion blocks take their norm over all frames, AnimateDiff's over each by itself: with Task.norm "clip"
ours do as it does, and both give the same latents.
"""

from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from PIL import Image
from torch import Tensor

from dreamoving_cli.bench.ours import (
    BETAS,
    NEGATIVE_PROMPT,
    PROMPT,
    Pictures,
    Run,
    starting_latents,
)
from dreamoving_cli.bench.sizes import CONTROL, CONTROL_SCALE, GUIDED, STRENGTHS, Task
from dreamoving_cli.bench.weights import picture_features, random_pack
from dreamoving_cli.compiling import MOST_SHAPES, keep_kernels
from dreamoving_cli.models.convolution import plain_convolutions
from dreamoving_cli.models.keys import adapter_attentions
from dreamoving_cli.models.layers import cross_attentions
from dreamoving_cli.models.load import Pack

Networks = tuple[Any, Any]  # UNetMotionModel, ControlNetModel
REPEATED = ["ResnetBlock2D", "Transformer2DModel", "AnimateDiffTransformer3D"]


def make(task: Task, tuned: bool = False, fast: bool = False, stride: int | None = None) -> Run:
    """Build the pipeline; what one run does. fast: its blocks that repeat are compiled, by the first run.

    stride: FreeNoise's, with windows of Task.window frames.
    """
    pipe = pipeline(random_pack(task), tuned).to(task.device)
    if fast:
        compile_blocks(pipe)
    if task.window:
        pipe.enable_free_noise(context_length=task.window, context_stride=stride or 4)
    frames = [Image.fromarray(picture) for picture in Pictures(task.size).read(range(task.frames))]
    height, width = task.size
    features = [picture_features(task, number)[:, None] for number in range(len(GUIDED))]

    @torch.inference_mode()
    def run() -> Tensor:
        latents = starting_latents(task).to(pipe.unet.dtype)
        return pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE_PROMPT,
            guidance_scale=task.guidance_scale,
            num_inference_steps=task.steps,
            num_frames=task.frames,
            height=height,
            width=width,
            latents=latents,
            ip_adapter_image_embeds=features,
            conditioning_frames=frames,
            controlnet_conditioning_scale=CONTROL_SCALE,
            output_type="np" if task.pictures else "latent",
        ).frames

    return run


def pipeline(pack: Pack, tuned: bool = False) -> Any:
    """The pipeline around these weights; tuned: channels last, self-attentions with fused projections."""
    unet, adapter = motion_unet(pack)
    pipe: Any = diffusers.AnimateDiffControlNetPipeline(
        vae=None if pack.vae is None else plain_convolutions(pack.vae.vae),
        text_encoder=pack.text_encoder,
        tokenizer=pack.tokenizer,
        unet=unet,
        motion_adapter=adapter,
        controlnet=plain_convolutions(pack.controlnets[CONTROL].controlnet),
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1, **BETAS),
    )
    states = [adapter_state(pack, kind) for kind in GUIDED]
    pipe.unet._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale([STRENGTHS[kind] for kind in GUIDED])
    pipe.set_progress_bar_config(disable=True)
    if tuned:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.controlnet.to(memory_format=torch.channels_last)
        fuse_self_attentions(pipe.unet)
        fuse_self_attentions(pipe.controlnet)
    return pipe


def motion_unet(pack: Pack) -> tuple[Any, Any]:
    """diffusers' UNetMotionModel and MotionAdapter on the pack's own tensors."""
    with init_empty_weights(include_buffers=False):
        flat = diffusers.UNet2DConditionModel(**pack.config.unet)
        unet = diffusers.UNetMotionModel.from_unet2d(flat, motion_adapter(pack), load_weights=False)
        adapter = motion_adapter(
            pack
        )  # another one: the first has lost its position tables to the meta device
    weights = pack.unet.unet.state_dict()
    moving = pack.unet.motion.state_dict() if pack.unet.motion is not None else {}
    for network, state in ((unet, {**weights, **moving}), (adapter, moving)):
        found = network.load_state_dict(state, strict=False, assign=True)
        assert not found.unexpected_keys, found.unexpected_keys[:3]
        assert all(key.endswith("pos_embed.pe") for key in found.missing_keys), found.missing_keys[:3]
        for table in network.buffers():
            table.data = table.data.to(weights["conv_in.weight"].dtype)
        network.eval().requires_grad_(False)
    return plain_convolutions(unet), adapter


def motion_adapter(pack: Pack) -> Any:
    config, motion = pack.config.unet, pack.config.motion
    assert motion is not None
    return diffusers.MotionAdapter(
        block_out_channels=config["block_out_channels"],
        motion_layers_per_block=config["layers_per_block"],
        motion_num_attention_heads=motion.heads,
        motion_max_seq_length=motion.max_length,
    )


def adapter_state(pack: Pack, kind: str) -> dict[str, dict[str, Tensor]]:
    """One kind of image prompt as an IP-Adapter file holds it, numbered as its files number attentions."""
    names = adapter_attentions(pack.unet.unet)
    number = {id(pack.unet.unet.get_submodule(name)): i for i, name in enumerate(names)}
    ours: Any = pack.guider.attentions[kind]
    keys = {
        f"{number[id(attention)]}.{name}": weight
        for attention, layer in zip(cross_attentions(pack.unet.unet), ours, strict=True)
        for name, weight in layer.state_dict().items()
    }
    return {"image_proj": pack.guider.projections[kind].state_dict(), "ip_adapter": keys}


def compile_blocks(pipe: Any) -> None:
    """diffusers' regional compilation; these networks do not name their blocks, and every width counts."""
    import torch._dynamo

    keep_kernels()
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.automatic_dynamic_shapes = False  # sizes stay: constants make the faster code
    for network in (pipe.unet, pipe.controlnet):
        network._repeated_blocks = REPEATED
        network.compile_repeated_blocks()


def fuse_self_attentions(network: Any) -> None:
    """One projection for queries, keys and values where no image prompt hangs on the attention."""
    for name, module in network.named_modules():
        own = name.endswith("attn1") or "motion_modules" in name
        if isinstance(module, Attention) and own:
            module.fuse_projections(fuse=True)
            module.set_processor(FusedAttnProcessor2_0())  # type: ignore[arg-type]
