"""The codebook: nearest codes, moving averages, dead codes, several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from stepladder.bottlenecks import VQBottleneck, VQConfig
from stepladder.errors import ConfigError
from stepladder.sampling.randomness import generator


def built(size: int = 8, channels: int = 2, **options: float) -> VQBottleneck:
    """A bottleneck whose features are not rescaled."""
    bottleneck = VQBottleneck(VQConfig(codebook_size=size, **options), channels)
    bottleneck.codebook.normal_(generator=generator(0))
    bottleneck.scale.variance.fill_(1 - 1e-6)
    return still(bottleneck)


def still(bottleneck: VQBottleneck) -> VQBottleneck:
    """In training mode, but for the scale of the features."""
    bottleneck.train().scale.eval()
    return bottleneck


def vectors(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def test_each_vector_becomes_its_nearest_code():
    bottleneck = built(size=30, channels=3).eval()
    x = vectors(4, 20, 3)
    out = bottleneck(x)
    distances = (x[:, :, None] - bottleneck.codebook).square().sum(-1)  # (4, 20, 30)
    assert torch.equal(out.indices, distances.argmin(-1))
    assert torch.equal(out.latent, bottleneck.codebook[out.indices])


def test_the_commitment_loss_is_the_weighted_distance_to_the_codes():
    bottleneck = built(commitment=0.4).eval()
    x = vectors(2, 10, 2).requires_grad_()
    out = bottleneck(x)
    torch.testing.assert_close(out.loss, 0.4 * F.mse_loss(x, out.latent))
    out.loss.backward()
    torch.testing.assert_close(x.grad, 0.4 * 2 * (x - out.latent).detach() / x.numel())


def test_the_gradient_of_the_latent_passes_straight_to_the_features():
    bottleneck = built(commitment=0.0).eval()
    x = vectors(2, 10, 2).requires_grad_()
    weight = vectors(2, 10, 2, seed=2)
    (bottleneck(x).latent * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)


def test_codes_are_the_running_sums_over_the_running_counts():
    bottleneck = built(size=4, decay=0.8, dead_below=0.0)
    bottleneck.usage.fill_(0.25)
    counts, sums = bottleneck.usage.clone(), 0.25 * bottleneck.codebook.clone()
    for step in range(20):
        x = vectors(1, 50, 2, seed=step)
        indices = bottleneck(x, generator(0)).indices[0]
        one_hot = F.one_hot(indices, 4).float()
        counts = 0.8 * counts + 0.2 * one_hot.mean(0)
        sums = 0.8 * sums + 0.2 * one_hot.T @ x[0] / 50
        torch.testing.assert_close(bottleneck.usage, counts)
        torch.testing.assert_close(bottleneck.codebook, sums / counts[:, None])


def test_a_code_that_gets_no_vector_stays_where_it_is():
    bottleneck = built(dead_below=0.0)
    bottleneck.codebook[3] = 100
    for step in range(5):
        bottleneck(vectors(1, 50, 2, seed=step), generator(0))
    assert bottleneck.codebook[3].tolist() == [100, 100]
    assert bottleneck.usage[3] == 0


def test_codes_become_the_centres_of_clusters():
    bottleneck = built(size=4, decay=0.8)
    centres = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
    for step in range(100):
        which = torch.randint(4, (1, 64), generator=generator(step))
        out = bottleneck(centres[which] + 0.1 * vectors(1, 64, 2, seed=step), generator(step))
    assert torch.cdist(centres, bottleneck.codebook).min(1).values.max() < 0.1
    assert out.statistics["codebook_usage"] == 1
    assert out.statistics["codebook_perplexity"] > 3.5


def test_the_variance_of_latents_is_one_less_the_error():
    bottleneck = VQBottleneck(VQConfig(codebook_size=32, decay=0.9), 2)
    for step in range(100):
        bottleneck(vectors(1, 500, 2, seed=step) * 7 + 3, generator(step))
    bottleneck.eval()
    x = vectors(1, 20_000, 2, seed=500) * 7 + 3
    latent = bottleneck(x).latent
    error = F.mse_loss(bottleneck.scale(x), latent)
    assert latent.mean(dim=(0, 1)).abs().max() < 0.05
    assert latent.var(dim=(0, 1)).mean().item() == pytest.approx(1 - error.item(), abs=0.05)
    assert error < 0.1


def test_the_first_batch_fills_the_codebook():
    bottleneck = built(size=8)
    x = vectors(1, 20, 2) + 50
    out = bottleneck(x, generator(0))
    assert (bottleneck.codebook > 40).all()
    assert out.statistics["codebook_usage"] == 1


def test_a_codebook_larger_than_the_first_batches_fills_step_by_step():
    bottleneck = built(size=10)
    for step, moved in enumerate((4, 8, 10, 10)):
        bottleneck(vectors(1, 4, 2, seed=step) + 50, generator(step))
        assert (bottleneck.codebook > 40).all(1).sum() == moved


def test_a_code_that_dies_moves_to_a_vector_of_the_batch_and_the_others_stay():
    bottleneck = built(size=3, decay=0.5, dead_below=0.1)
    bottleneck.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [1000.0, 0.0]]))
    bottleneck.usage.fill_(1 / 3)
    x = torch.tensor([[[0.0, 0.0], [10.0, 0.0]] * 8])
    steps = 0
    while bottleneck.codebook[2, 0] == 1000:
        bottleneck(x, generator(steps))
        steps += 1
    assert steps == 5  # 2^-3 of the even share is alive, 2^-4 is dead, and a step sees the usage of the one before
    assert bottleneck.codebook[2].tolist() in ([0, 0], [10, 0])
    assert bottleneck.codebook[:2].tolist() == [[0, 0], [10, 0]]
    assert bottleneck.usage[2] > 0.1


def test_without_a_fraction_no_code_is_ever_dead():
    bottleneck = built(dead_below=0.0)
    x = torch.full((1, 20, 2), 50.0)
    before = bottleneck.codebook.clone()
    used = int(bottleneck(x, generator(0)).indices[0, 0])
    assert (bottleneck.codebook != before).any(1).nonzero().flatten().tolist() == [used]


def test_dead_codes_move_by_the_caller_s_generator_and_by_no_other():
    state = torch.get_rng_state()
    found = []
    for seed in (3, 3, 4):
        bottleneck = built()
        bottleneck(vectors(1, 50, 2), generator(seed))
        found.append(bottleneck.codebook)
    torch.set_rng_state(state)
    bottleneck = built()
    after_building = torch.get_rng_state()
    bottleneck(vectors(1, 50, 2), generator(3))
    bottleneck.eval()(vectors(1, 50, 2))
    assert torch.equal(after_building, torch.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_codebook_that_follows_asks_for_a_generator():
    with pytest.raises(ValueError, match=r"draws vectors for dead codes\. Pass a generator"):
        built()(vectors(1, 5, 2))


def test_the_codebook_is_stored_whole():
    source, target = built(), built()
    source(vectors(1, 50, 2), generator(0))
    target.load_state_dict(source.state_dict(), strict=True)
    x = vectors(1, 50, 2, seed=9)
    for bottleneck in (source, target):
        bottleneck(x, generator(5))
    assert torch.equal(source.codebook, target.codebook)
    assert torch.equal(source.usage, target.usage)
    assert not list(source.parameters())


@pytest.mark.untyped
def test_encoding_compiles_to_one_graph():
    bottleneck = built().eval()
    x = vectors(2, 9, 2)
    compiled = torch.compile(lambda x: bottleneck(x).indices, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), bottleneck(x).indices)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"codebook_size": 1}, r"VQ codebook_size 1 is outside 2 to 1,048,576\. Usual values"),
        ({"codebook_size": 2**31}, r"VQ codebook_size 2147483648 is outside"),
        ({"decay": 1.0}, r"Codebook decay 1\.0 is outside \[0, 1\)\. Usual values"),
        ({"commitment": -0.5}, r"VQ commitment -0\.5 is outside 0 to 1,000,000"),
        ({"dead_below": 1.0}, r"Dead-code fraction 1\.0 is outside \[0, 1\)\. Usual"),
    ],
)
def test_odd_settings_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        VQConfig(**options)


PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[3])
from test_vq import follow_in_processes
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.save([follow_in_processes(rank, dead_below) for dead_below in (0.0, 0.9)], f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def follow_in_processes(rank: int | None, dead_below: float) -> dict[str, torch.Tensor]:
    """A codebook after five batches of two images, of which a process sees one; all of them without a rank."""
    bottleneck = built(size=6, decay=0.9, dead_below=dead_below)
    for step in range(5):
        both = vectors(2, 30, 2, seed=step)
        part = both if rank is None else both[rank : rank + 1]
        bottleneck(part, generator(10 * step + (rank or 0)))
    return bottleneck.state_dict()


@pytest.mark.untyped
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_two_processes_keep_one_codebook_that_of_a_process_that_sees_all(tmp_path):
    here = str(Path(__file__).parent)
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path), here] for rank in (0, 1)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = follow_in_processes(None, 0.0)
    for name in ("codebook", "usage"):
        torch.testing.assert_close(first[0][name], alone[name])
        assert all(torch.equal(one[name], other[name]) for one, other in zip(first, second, strict=True))
