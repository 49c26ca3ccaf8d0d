"""Tiles: the same image as the whole, on every stage, without a seam."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoiser_fakes import decoded
from stepladder import Tokenizer, presets
from stepladder.decoders import Context, ConvDecoder, DecoderNetwork, LadderDecoder
from stepladder.encoders import ConvEncoderConfig
from stepladder.images import to_uint8
from stepladder.models import embedded_models
from stepladder.sampling.denoiser import Cut, Denoised, Denoiser
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down, up
from stepladder.sampling.stages import Stage, StageSchedule
from stepladder.sampling.tiling import tiled
from stepladder.tiles import Tile, tiles
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig
from tokenizer_fakes import built


def a_tokenizer(num_stages: int = 3, stride: int = 8, prediction: str = "clean", tile: int = 1024) -> Tokenizer:
    tiny = presets.tiny()
    config = replace(
        tiny,
        encoder=replace(tiny.encoder, stride=stride),
        decoder=replace(tiny.decoder, prediction=prediction),
        ladder=LadderConfig(num_stages=num_stages),
        tile=tile,
    )
    return built(config)


@pytest.fixture
def exact(monkeypatch) -> None:
    """Margins that cover the whole reach."""
    monkeypatch.setattr(ConvDecoder, "tile_margin", ConvDecoder.reach)


def a_latent(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 16, height, width, generator=generator(1))


def a_picture(height: int, width: int) -> Tensor:
    """Waves of all lengths, and a black disc."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.stack([torch.sin(40 * (x + y) ** 2), torch.cos(90 * x * y), torch.sin(200 * y**3)])
    return torch.where((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.04, -torch.ones(()), waves)[None]


def sides_seen(tokenizer: Tokenizer) -> list[tuple[int, int, int]]:
    """Fills with the downscale, height and width of each evaluation of the network from now on."""
    seen: list[tuple[int, int, int]] = []

    def note(_: nn.Module, inputs: tuple) -> None:
        x, _, stage, *_ = inputs
        seen.append((stage.downscale, x.shape[2], x.shape[3]))

    tokenizer.decoder.network.register_forward_pre_hook(note)
    return seen


def a_seam_shows(tokenizer: Tokenizer, tile: int = 32) -> bool:
    """Whether an image in tiles differs from the whole more along the edges of tiles than elsewhere."""
    latent = a_latent(24, 24)
    whole, tiled = (tokenizer.decode(latent, steps=1, tile=side) for side in (0, tile))
    difference = (tiled - whole).abs().amax(dim=(0, 1))
    near = torch.arange(192) % tile  # pixels to the last edge
    edge = (near < 4) | (near >= tile - 4)
    edge[:4] = edge[-4:] = False  # the borders of the image are no edges
    at_edges, elsewhere = edge[:, None] | edge[None, :], ~(edge[:, None] | edge[None, :])
    return bool(difference[at_edges].max() > 1.5 * difference[elsewhere].max() + 1e-6)


class Blur(DecoderNetwork):
    """A network that sees one pixel around each, the initial estimate and the image before, and notes all shapes."""

    side_multiple = 4
    tile_margin = 8
    linear = None
    output_layers = ()

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def context(self, latent: Tensor, dropped: Tensor | None = None) -> Context:
        return Context(features=latent, initial=latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))

    def forward(self, x: Tensor, u: Tensor, stage: Stage, context: Context, previous: Denoised | None) -> Denoised:
        downscale = stage.downscale
        self.calls.append((downscale, *x.shape[2:], *context.features.shape[2:], *context.initial.shape[2:]))
        assert (previous is None) == (downscale == 4)
        base = down(context.initial, downscale) if previous is None else up(previous.clean)
        return Denoised(F.avg_pool2d(x + base, 3, stride=1, padding=1))


# ----------------------------------------------------------------------------------------------------------- geometry


def test_tiles_cover_each_pixel_once_and_see_a_margin_inside_the_image_only():
    seen = torch.zeros(40, 72)
    found = list(tiles((40, 72), 32, 8))
    for tile in found:
        rows, columns = tile.kept
        seen[rows.start : rows.stop, columns.start : columns.stop] += 1
    assert torch.equal(seen, torch.ones(40, 72))
    assert [tile.kept[1] for tile in found[:3]] == [range(32), range(32, 64), range(64, 72)]
    assert [tile.read[1] for tile in found[:3]] == [range(40), range(24, 72), range(56, 72)]
    assert [tile.read[0] for tile in found[::3]] == [range(40), range(24, 40)]


def test_tiles_inside_an_image_are_all_of_one_shape():
    shapes = {
        tuple(len(span) for span in t.read) for t in tiles((160, 160), 32, 16) if 0 not in (t.read[0][0], t.read[1][0])
    }
    assert (64, 64) in shapes
    assert len(shapes) == 4  # and those that end at a border


def test_a_tile_is_cut_out_of_every_grid_that_covers_the_image_and_pasted_back():
    tile = Tile(size=(32, 64), kept=(range(8, 16), range(32, 64)), read=(range(32), range(16, 64)))
    pixels = torch.rand(2, 3, 32, 64, generator=generator(0))
    assert torch.equal(tile.cut(pixels), pixels[:, :, :, 16:])
    assert torch.equal(tile.cut(down(pixels)), down(pixels)[:, :, :, 8:])
    assert torch.equal(tile.cut(down(pixels, 16)), down(pixels, 16)[:, :, :, 1:])
    assert torch.equal(tile.cut(up(pixels)), up(pixels)[:, :, :, 32:])
    whole = torch.zeros_like(pixels)
    tile.paste(tile.cut(pixels), whole)
    assert torch.equal(whole[:, :, 8:16, 32:], pixels[:, :, 8:16, 32:])
    assert whole.count_nonzero() == whole[:, :, 8:16, 32:].count_nonzero()


def test_a_tile_that_would_cut_a_cell_in_two_is_a_broken_invariant():
    tile = Tile(size=(32, 32), kept=(range(8, 16), range(8, 16)), read=(range(8, 16), range(8, 16)))
    with pytest.raises(AssertionError, match=r"range\(8, 16\) of 32 pixels does not end between two of 2 cells"):
        tile.cut(torch.zeros(1, 1, 2, 2))


class Doubled:
    """Doubles what it sees, and hands on features on a grid of 1/4."""

    def __call__(self, x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        return Denoised(2 * x, (down(x, 4), up(x)[:, :1]))

    def cut(self, cut: Cut) -> Denoiser:
        return self


def test_what_is_said_of_tiles_is_put_together_features_too():
    x, (_, stage, last) = torch.rand(2, 3, 24, 40, generator=generator(0)), StageSchedule.uniform(3).stages
    denoiser = tiled(Doubled(), side=16, margin=8)
    found = denoiser(x, torch.ones(2), stage, None)
    assert torch.equal(found.clean, 2 * x)
    torch.testing.assert_close(found.features[0], down(x, 4))
    assert torch.equal(found.features[1], up(x)[:, :1])
    at_last = denoiser(x, torch.ones(2), last, None)
    assert torch.equal(at_last.clean, 2 * x)
    assert at_last.features == ()  # nobody would read them


@torch.no_grad()
def test_a_latent_in_tiles_is_read_as_the_whole():
    tokenizer = a_tokenizer()
    network = tokenizer.decoder.network
    sides: list[tuple[int, ...]] = []
    network.reader.register_forward_pre_hook(lambda _, inputs: sides.append(tuple(inputs[0].shape[2:])))
    latent = a_latent(20, 28, count=2)
    whole, tiled = network.bind(latent).context, network.bind(latent, tile=32).context
    torch.testing.assert_close(tiled.features, whole.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(tiled.initial, whole.initial, atol=1e-5, rtol=0)
    assert sides[0] == (20, 28)
    assert max(max(side) for side in sides[1:]) == 4 + 2 * network.latent_reach
    sides.clear()
    tokenizer.decode(latent, steps=1, tile=32)
    assert len(sides) == 5 * 7


# ------------------------------------------------------------------------------------------------------- equivalence


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("num_stages", "stride", "prediction"),
    [(3, 8, "clean"), (3, 8, "velocity"), (2, 16, "clean"), (1, 8, "clean"), (1, 4, "velocity")],
)
def test_an_image_in_tiles_is_the_whole_image_where_margins_cover_the_reach(num_stages, stride, prediction):
    tokenizer = a_tokenizer(num_stages, stride, prediction)
    seen = sides_seen(tokenizer)
    latent = a_latent(144 // stride, 176 // stride, count=2)
    options = {"seeds": [4, 9], "steps": 2, "size": (140, 163)}
    whole = tokenizer.decode(latent, tile=0, **options)
    assert max(height for _, height, _ in seen) > 128
    seen.clear()
    in_tiles = tokenizer.decode(latent, tile=32, **options)
    assert max(height for downscale, height, _ in seen if downscale == 1) == 32 + 2 * 48
    assert in_tiles.shape == (2, 3, 140, 163)
    torch.testing.assert_close(in_tiles, whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.05


@pytest.mark.usefixtures("exact")
def test_every_stage_in_tiles_is_that_of_the_whole():
    tokenizer = a_tokenizer()
    latent = a_latent(24, 20)
    whole, tiled = (list(tokenizer.decode_progressively(latent, steps=1, tile=side)) for side in (0, 32))
    assert [stage.shape[2] for stage in tiled] == [48, 96, 192]
    for a, b in zip(tiled, whole, strict=True):  # the first is one piece, of a latent that was read in tiles
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert not torch.equal(a, b)  # it was in tiles, and rounds in another order


@pytest.mark.usefixtures("exact")
def test_no_seam_shows_where_margins_cover_the_reach():
    assert not a_seam_shows(a_tokenizer())


@pytest.mark.parametrize("margin", [0, 8])
def test_a_seam_would_show_with_a_margin_too_small(monkeypatch, margin):
    monkeypatch.setattr(ConvDecoder, "tile_margin", margin)
    assert a_seam_shows(a_tokenizer())


def test_the_margin_of_every_embedded_model_hides_its_tiles(monkeypatch):
    # Weights decide how fast influence falls off. If new ones fail here, they need a wider margin.
    for name in embedded_models():
        tokenizer = Tokenizer.from_pretrained(name)
        latent = tokenizer.encode(a_picture(256, 128)).latent
        whole, tiled = (tokenizer.decode(latent, steps=1, tile=side) for side in (0, 128))
        torch.testing.assert_close(tiled, whole, atol=1e-3, rtol=0)  # a step of 8 bits is 8e-3
        assert (to_uint8(tiled) != to_uint8(whole)).float().mean() < 1e-4  # those on the edge between two steps
        with monkeypatch.context() as patch:
            patch.setattr(ConvDecoder, "tile_margin", 0)
            assert (tokenizer.decode(latent, steps=1, tile=128) - whole).abs().max() > 1e-2


def test_a_tile_no_smaller_than_the_image_is_the_whole_bit_for_bit():
    tokenizer = a_tokenizer()
    latent = a_latent(8, 12)
    whole = tokenizer.decode(latent, steps=1, tile=0)
    for tile in (96, 128):
        assert torch.equal(tokenizer.decode(latent, steps=1, tile=tile), whole)


def test_an_image_in_tiles_decodes_alone_as_in_a_batch():
    tokenizer = a_tokenizer()
    latent = a_latent(12, 12, count=2)
    together = tokenizer.decode(latent, seeds=[1, 2], steps=1, tile=32)
    alone = tokenizer.decode(latent[1:], seeds=[2], steps=1, tile=32)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------- what is in tiles


def test_the_first_stage_of_a_ladder_sees_the_whole_image_and_finer_ones_do_not():
    network, schedule = Blur(), StageSchedule.uniform(3)
    decoder, latent = LadderDecoder(network, schedule), a_latent(16, 16)
    noise = {"size": (128, 128), "seeds": [3], "steps": 1}
    whole = decoded(decoder.bind(latent), schedule, **noise)
    network.calls.clear()
    torch.testing.assert_close(decoded(decoder.bind(latent, tile=16), schedule, **noise), whole, atol=1e-6, rtol=0)

    coarse, middle, fine = ([call for call in network.calls if call[0] == scale] for scale in (4, 2, 1))
    assert coarse == [(4, 32, 32, 16, 16, 128, 128)]
    assert len(middle) == 4 * 4
    assert set(middle) == {(2, h, w, h // 4, w // 4, 2 * h, 2 * w) for h in (24, 32) for w in (24, 32)}
    assert len(fine) == 8 * 8
    assert set(fine) == {(1, h, w, h // 8, w // 8, h, w) for h in (24, 32) for w in (24, 32)}


def test_the_only_stage_of_a_ladder_with_one_is_in_tiles():
    tokenizer = a_tokenizer(num_stages=1)
    seen = sides_seen(tokenizer)
    tokenizer.decode(a_latent(4, 8), steps=2, tile=32)
    assert seen == [(1, 32, 56), (1, 32, 56)] * 2


def test_tiles_begin_above_the_configured_side_and_not_at_it():
    tokenizer = a_tokenizer(tile=64)
    seen = sides_seen(tokenizer)
    tokenizer.decode(a_latent(8, 4), steps=1)
    assert seen == [(4, 16, 8), (2, 32, 16), (1, 64, 32)]
    seen.clear()
    tokenizer.decode(a_latent(4, 12), steps=1)
    assert seen == [(4, 8, 24), (2, 16, 48), (1, 32, 88), (1, 32, 56)]
    seen.clear()
    tokenizer.decode(a_latent(4, 12), steps=1, tile=0)
    assert seen == [(4, 8, 24), (2, 16, 48), (1, 32, 96)]


def test_tiles_of_very_large_images_are_half_as_large_unless_a_side_is_asked_for():
    tokenizer = a_tokenizer(tile=64)
    encoded = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].shape[3]))
    seen = sides_seen(tokenizer)
    inner = {256: 64, 288: 32}
    for side, tile in inner.items():
        tokenizer.encode(torch.zeros(1, 3, 8, side))
        tokenizer.decode(a_latent(4, side // 8), steps=1)
        assert max(encoded) == tile + 2 * tokenizer.encoder.reach
        assert max(width for downscale, _, width in seen if downscale == 1) == tile + 2 * 24
        encoded.clear()
        seen.clear()
    assert tokenizer.tile_side(64, (8, 288)) == 64
    assert a_tokenizer(tile=32).tile_side(None, (8, 288)) == 32  # half would be no multiple of what the ladder needs


def test_a_network_that_looks_at_the_whole_image_gets_it(monkeypatch):
    monkeypatch.setattr(ConvDecoder, "tile_margin", None)
    tokenizer = a_tokenizer(tile=32)
    seen = sides_seen(tokenizer)
    tokenizer.decode(a_latent(8, 8), steps=1)
    tokenizer.decode(a_latent(8, 8), steps=1, tile=0)
    assert seen == [(4, 16, 16), (2, 32, 32), (1, 64, 64)] * 2
    text = r"^Tile side 32 does not fit a decoder that looks at the whole image\. Leave it out\.$"
    with pytest.raises(ValueError, match=text):
        tokenizer.decode(a_latent(8, 8), tile=32)


def test_the_default_side_fits_every_ladder_and_encoder():
    for num_stages in range(1, 9):
        for stride in (4, 8, 16):
            config = replace(
                presets.tiny(),
                ladder=LadderConfig(num_stages=num_stages),
                encoder=ConvEncoderConfig(stride=stride, width=4, depth=0, latent_depth=0),
            )
            with torch.device("meta"):
                assert Tokenizer(config).tile_side() == TokenizerConfig().tile
