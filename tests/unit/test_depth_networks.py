"""One contract over both depth networks, and the choice between them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.extract import depth_networks
from dreamoving_cli.extract.depth import DepthNetwork
from dreamoving_cli.extract.depth_networks import DepthOptions, LightNetwork, open_network
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.models.depth import load_depth_net
from dreamoving_cli.paths import PACKAGE
from tests.unit.test_zoe import tiny_zoe

MAX_BYTES = 2_500_000


@pytest.fixture(scope="module")
def zoe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_zoe(tmp_path_factory.mktemp("zoe")))


@pytest.fixture(params=["light", "zoe"])
def network(request: pytest.FixtureRequest, zoe: str) -> DepthNetwork:
    return open_network(DepthOptions(request.param, zoe if request.param == "zoe" else "", device="cpu"))


class TestContract:
    def test_distances_of_every_frame(self, network: DepthNetwork) -> None:
        height, width = network.size(90, 60)
        frames = np.random.default_rng(0).integers(0, 255, (2, height, width, 3), np.uint8)
        distances = network(frames)
        assert distances.shape == (2, height, width)
        assert distances.dtype == np.float32
        assert np.isfinite(distances).all()
        np.testing.assert_allclose(network(frames[1:])[0], distances[1], atol=1e-4)  # a frame is on its own
        assert network.name
        assert network.identity != network.name

    @pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (240, 426), (16, 400), (512, 512)])
    def test_sizes_keep_the_shape(self, network: DepthNetwork, size: tuple[int, int]) -> None:
        height, width = network.size(*size)
        assert height % 32 == width % 32 == 0
        assert min(height, width) >= 32
        if max(size) / min(size) < 2:
            assert height / width == pytest.approx(size[0] / size[1], rel=0.13)


def test_the_light_network_ships_and_is_small() -> None:
    assert depth_networks.LIGHT_FILE.stat().st_size <= MAX_BYTES


def test_the_dancer_is_before_the_room() -> None:
    """On the example video, a clip that the network was not trained on."""
    with open_clip(PACKAGE / "example_media" / "dance.mp4", num_frames=1) as clip:
        frame = clip.read([0])
        network = LightNetwork(torch.device("cpu"))
        small = network.size(clip.height, clip.width)
    from dreamoving_cli.media.images import resize

    distances = network(resize(frame[0], *small)[None])[0]
    middle = distances[small[0] // 3 : small[0] // 2, small[1] // 2 - 4 : small[1] // 2 + 4]
    rim = np.concatenate([distances[: small[0] // 2, :4], distances[: small[0] // 2, -4:]], axis=1)
    assert middle.mean() + 0.05 < rim.mean()


def test_zoe_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_networks, "public_here", list)
    with pytest.raises(WeightsError, match="dreamoving models pull depth") as error:
        open_network(DepthOptions("zoe", device="cpu"))
    assert error.value.exit_code == 4
    assert open_network(DepthOptions(device="cpu")).name == "light"


def test_without_a_gpu_auto_is_light_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(depth_networks, "public_here", lambda: ["depth.zoe-n-hf"])
    assert open_network(DepthOptions(device="cpu")).name == "light"
    assert "ZoeDepth takes a minute a frame without a GPU" in caplog.text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"detector": "midas"}, "detector is 'midas'"),
        ({"detector": "light", "network": "depth.zoe-n"}, "the light detector has its own"),
        ({"network": "gone/model.safetensors"}, "there is no file gone/model.safetensors"),
        ({"network": "vae.ft-mse"}, "not a ZoeDepth|unknown|no entry"),
        ({"device": "cuda:77"}, "there is no device"),
    ],
)
def test_what_cannot_be_chosen(values: dict[str, str], says: str) -> None:
    with pytest.raises((UsageError, WeightsError), match=says):
        open_network(DepthOptions(**values))


def test_a_broken_light_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "depth.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="does not hold the light depth network"):
        load_depth_net(tmp_path / "depth.safetensors")
