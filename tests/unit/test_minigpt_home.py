"""The captioner in fewer bits, in 16-bit floats, and layer by layer: the same words from less memory."""

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor

from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.minigpt import home as homes
from dreamoving_cli.models.minigpt.checkpoint import PublicFiles, assemble_captioner, assembled_shapes
from dreamoving_cli.models.minigpt.home import CPU, Home, wait_on_cpu, weight_bytes
from dreamoving_cli.models.minigpt.model import Captioner
from dreamoving_cli.models.minigpt.tokenizer import learn_tokenizer
from tests.captioners import SENTENCES, WHOLE, random_captioner
from tests.unit.test_minigpt import PICTURE, PIECES, public_states, write_public

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PublicFiles:
    """Those of MiniGPT-v2 at the least width."""
    tokenizer = learn_tokenizer(SENTENCES, WHOLE, PIECES + 100)
    return write_public(tmp_path_factory.mktemp("public"), tokenizer, public_states(tokenizer))


def words_of(model: Captioner) -> Tensor:
    """The language model's last logits for one picture."""
    pixels = torch.linspace(-1, 1, 3 * model.config.vision.side**2).view(1, 3, model.config.vision.side, -1)
    weight = model.llama_proj.weight
    with torch.inference_mode():
        embeddings, mask = model.inputs(pixels.to(weight.dtype).to(weight.device), ["describe this"])
        out = model.llama_model(inputs_embeds=embeddings, attention_mask=mask, logits_to_keep=1)
    return out.logits[0, -1].float().cpu()


@pytest.fixture(scope="module")
def expected(files: PublicFiles) -> Tensor:
    return words_of(assemble_captioner(files))


def kept_bytes(model: Captioner) -> int:
    """Of all weights, with the scales of rounded ones."""
    total = sum(p.nbytes for p in model.parameters())
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes + state.state2.absmax.nbytes
        scale = getattr(getattr(layer, "weight", None), "SCB", None)
        total += 0 if scale is None else scale.nbytes
    return total


@pytest.mark.parametrize(
    ("home", "near"),
    [
        (Home(dtype=torch.float16), 0.01),
        (Home(bits=8, dtype=torch.bfloat16), 0.08),
        (Home(bits=4), 0.35),
    ],
    ids=str,
)
def test_less_memory_for_nearly_the_same(
    home: Home, near: float, files: PublicFiles, expected: Tensor
) -> None:
    """The public files' layout in every home; what was said of memory before is what is taken."""
    model = assemble_captioner(files, home)
    found = words_of(model)
    assert float((found - expected).norm() / expected.norm()) < near
    assert model.visual_encoder.blocks[0].attn.qkv.weight.dtype == home.dtype
    assert model.llama_model.model.rotary_emb.inv_freq.dtype == torch.float32
    small = model.llama_model.model.layers[31].mlp.down_proj.weight
    assert small.dtype == {8: torch.int8, 4: torch.uint8, None: home.dtype}[home.bits]
    told = weight_bytes(assembled_shapes(files), home)
    assert told.host == 0
    assert kept_bytes(model) == pytest.approx(told.device, rel=0.04)


def test_what_layers_take_that_wait(files: PublicFiles) -> None:
    shapes = assembled_shapes(files)
    whole, waiting = (weight_bytes(shapes, Home(CUDA, torch.float16, offload=on)) for on in (False, True))
    assert whole.host == 0
    assert waiting.host < whole.device < waiting.host + waiting.device
    assert waiting.device < whole.device / 4


def test_a_waiting_layer_is_there_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that wait are not numbers here, so that one that is used out of its turn is seen."""
    model = random_captioner()
    answer = model.describe([PICTURE], "describe this")
    layers = [*model.visual_encoder.blocks, *model.llama_model.model.layers]
    away: dict[int, list[Tensor]] = {}
    there: list[int] = []

    def weights(group: ModuleGroup) -> list[Tensor]:
        return [*(p for part in group.modules for p in part.parameters()), *group.parameters]

    def onload(group: ModuleGroup) -> None:
        for p, kept in zip(weights(group), away.pop(id(group)), strict=True):
            p.data = kept
        there.append(len(layers) - len(away))

    def offload(group: ModuleGroup) -> None:
        if id(group) not in away:
            away[id(group)] = [p.data for p in weights(group)]
        for p in weights(group):
            p.data = torch.full_like(p.data, float("nan"))

    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    for layer in layers:
        wait_on_cpu(layer, CPU)
    assert len(away) == len(layers)
    assert model.describe([PICTURE], "describe this") == answer
    assert set(there) == {1}  # one at a time
    assert len(there) >= 2 * len(layers) - 2


def test_homes_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"bits": 3}, {"offload": True}, {"device": torch.device("mps"), "bits": 8}):
        with pytest.raises(UsageError):
            Home(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Give one of them"):
        Home(CUDA, bits=8, offload=True)
    monkeypatch.setattr(homes, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dreamoving\[caption\]'"):
        Home(bits=4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "home",
    [Home(CUDA), Home(CUDA, offload=True), Home(CUDA, torch.float16, 8), Home(CUDA, torch.bfloat16, 4)],
    ids=str,
)
def test_on_cuda(home: Home, files: PublicFiles, expected: Tensor) -> None:
    model = assemble_captioner(files, home)
    assert model.device.type == "cuda"
    near = 0.35 if home.bits == 4 else 0.08
    assert float((words_of(model) - expected).norm() / expected.norm()) < near
    layers = [p.device.type for layer in model.llama_model.model.layers for p in layer.parameters()]
    assert set(layers) == {"cpu" if home.offload else "cuda"}
