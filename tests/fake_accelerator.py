"""Runs every part on an accelerator that is not there, and prints what each did as JSON.

Tensors are fake: they have a shape, a type and a device, and no values. So a tensor that stayed on the CPU is an error,
and so is everything for which the host would wait for the device: a value that is read, a size that depends on values.
It runs in a process of its own, because the accelerator stays registered.
"""

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import TypeVar
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from stepladder import Tokenizer, presets
from stepladder.bottlenecks import FSQConfig, KLConfig, PlainConfig, VQConfig
from stepladder.losses import FeaturePyramid
from stepladder.measure.metrics import FeatureStatistics, colour_shift, psnr, quantise, ssim
from stepladder.nn.efficientnet import EfficientNetLite
from stepladder.sampling import randomness
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig
from stepladder.training import loop
from stepladder.training.autoencoder import TokenizerObjective
from stepladder.training.config import AdversarialConfig, LossConfig, RegressConfig
from stepladder.training.distillation import AdversarialObjective, RegressObjective, make_student
from stepladder.training.ema import MovingAverage
from stepladder.training.objective import Objective
from stepladder.training.records import RunningMeans
from stepladder.training.setup import Run

DEVICE = "imaginary"
Module = TypeVar("Module", bound=torch.nn.Module)
_SOURCE = "src/stepladder"


class _Generator:
    """A generator on the fake device, which torch cannot make: nothing is drawn, so it holds nothing."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> "_Generator":
        return self


def _draws(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def draw(*shape, generator=None, out=None, device=None):
        drawn = function(*shape, device=out.device if out is not None else device)
        return drawn if out is None else out.copy_(drawn)

    return draw


class _Torch:
    """torch, but for generators."""

    Generator = _Generator
    randn, rand, randperm = (staticmethod(_draws(f)) for f in (torch.randn, torch.rand, torch.randperm))

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def _images(config: TokenizerConfig) -> torch.Tensor:
    side = getattr(config.layout, "side", 64)
    return torch.rand(2, 3, side, side, device=DEVICE) * 2 - 1


def _on_accelerator(make: Callable[[], Module]) -> Module:
    """A module whose weights were made there: fake ones cannot move."""
    with torch.device(DEVICE):
        return make()


def _codes(config: TokenizerConfig) -> None:
    tokenizer = _on_accelerator(lambda: Tokenizer(config).eval())
    with mock.patch("stepladder.tokenizer.check_images"):  # the one look at values, at the entrance of an encode
        code = tokenizer.encode(_images(config))
    if code.indices is not None:
        _on_device(tokenizer.bottleneck.from_indices(code.indices))
    with mock.patch("stepladder.tokenizer.check_finite"):  # the one look at values, at the entrance of a decode
        for steps, guidance in ((1, 1.0), (2, 0.0 if tokenizer.decoder.network.guidable else 1.0)):
            _on_device(tokenizer.decode(code, steps=steps, guidance=guidance))
        if tokenizer.decoder.network.guidable:
            _on_device(tokenizer.decode(code, steps=2, guidance=2.0))


class _Pyramid(FeaturePyramid):
    """Stands for EfficientNet-Lite0 in all but one case of each kind: fake tensors make every layer slow."""

    channels = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 8)))

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = self.layers[0](images)
        return [fine, self.layers[1](fine)]


class _Optimiser:
    """Stands for a fused one, which torch has for no such device."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.parameters = parameters
        self.found_inf = torch.zeros(())

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad * (1 - self.found_inf))

    def zero_grad(self, *, set_to_none: bool) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _learns(objective: Objective, batch: torch.Tensor, steps: int) -> None:
    """Steps of the loop."""
    parameters = [p for group in objective.optimiser_groups() for p in group.parameters]
    clip = SimpleNamespace(clip_grad_norm_=torch.nn.utils.clip_grad_norm_)
    optimiser = _Optimiser(parameters)
    run = SimpleNamespace(
        accelerator=clip,
        clip=lambda *arguments: Run.clip(run, *arguments),
        inner_optimiser=optimiser,
        groups=objective.optimiser_groups(),
        config=SimpleNamespace(optimiser=SimpleNamespace(clip_norm=1.0)),
        optimiser=optimiser,
        objective=objective,
    )
    copy = lambda model, _=None: _on_accelerator(lambda: Tokenizer(model.config))  # noqa: E731
    with mock.patch("copy.deepcopy", copy):  # fake weights have no copies
        ema, means = MovingAverage(objective.model, 0.99), RunningMeans(0.0)
    objective.train()
    for step in range(steps):
        loss, losses = objective(batch, step, 0.5)
        loss.backward()
        norms = loop._clip(run)
        finite = loop._optimise(run, norms)
        ema.update(objective.model, step)
        means.add([losses], norms["model"], finite)
        _on_device(finite, *losses.values())


def _trains(
    config: TokenizerConfig, features: Callable[[], FeaturePyramid] = _Pyramid, *, steps: int = 1, **settings
) -> None:
    loss = LossConfig(**settings)
    make = lambda: TokenizerObjective(Tokenizer(config), loss, features(), train_encoder=True)  # noqa: E731
    _learns(_on_accelerator(make), _images(config), steps)


def _distils(
    config: TokenizerConfig,
    recipe: RegressConfig | AdversarialConfig,
    features: Callable[[], FeaturePyramid] = _Pyramid,
) -> None:
    kind = AdversarialObjective if isinstance(recipe, AdversarialConfig) else RegressObjective

    def make() -> Objective:
        teacher = Tokenizer(config)
        return kind(make_student(teacher), teacher, recipe, features())

    _learns(_on_accelerator(make), _images(config), 1)


def _measures() -> None:
    a, b = (quantise(torch.rand(2, 3, 64, 64, device=DEVICE)) for _ in range(2))
    _on_device(psnr(a, b), ssim(a, b), colour_shift(a, b))
    FeatureStatistics().update(_on_accelerator(lambda: EfficientNetLite(2)).pooled(a))


def _on_device(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.device.type == DEVICE, f"a result on {tensor.device}"


def _cases() -> dict[str, Callable[[], None]]:
    ladder = LadderConfig(num_stages=2)  # one that draws its noise, and one that goes on from another
    grid, tokens = (dataclasses.replace(preset(), ladder=ladder) for preset in (presets.tiny, presets.tiny_tokens))
    guidable = dataclasses.replace(tokens, decoder=dataclasses.replace(tokens.decoder, null_latent=True))
    quantised = FSQConfig(levels=[3] * grid.latent_channels)
    bottlenecks = {"plain": PlainConfig(), "kl": KLConfig(), "fsq": quantised, "vq": VQConfig(codebook_size=32)}
    regress, adversarial = RegressConfig(teacher_steps=2), AdversarialConfig(teacher_steps=2)
    strong = dataclasses.replace(regress, guidance=GuidanceConfig(scale=2.0))
    lite = lambda: EfficientNetLite(0)  # noqa: E731
    cases: dict[str, Callable[[], None]] = {
        "codes of guided tokens": lambda: _codes(guidable),
        "train with context dropout": lambda: _trains(guidable, context_dropout=0.5),
        "regress a grid": lambda: _distils(grid, regress, lite),
        "regress tokens": lambda: _distils(tokens, regress),
        "regress on a guided teacher": lambda: _distils(guidable, strong),
        "adversarial a grid": lambda: _distils(grid, adversarial, lite),
        "adversarial tokens": lambda: _distils(tokens, adversarial),
        "evaluate": _measures,
    }
    for name, bottleneck in bottlenecks.items():
        config = dataclasses.replace(grid, bottleneck=bottleneck)
        features, steps = (lite, 2) if name == "plain" else (_Pyramid, 2 if name == "vq" else 1)
        cases[f"codes of {name}"] = lambda config=config: _codes(config)
        cases[f"train {name}"] = lambda config=config, f=features, n=steps: _trains(config, f, steps=n)
    return cases


def _attempt(case: Callable[[], None]) -> str:
    try:
        with FakeTensorMode():
            case()
    except Exception as error:
        places = [f"{f.filename.rsplit(_SOURCE, 1)[-1]}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        return f"{type(error).__name__}: {str(error).splitlines()[0]} at {places}"
    return ""


def main() -> None:
    """Prints {case: what went wrong, or nothing}."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    shim = _Torch()
    with mock.patch.object(randomness, "torch", shim), mock.patch("stepladder.bottlenecks.vq.torch", shim):
        json.dump({name: _attempt(case) for name, case in _cases().items()}, sys.stdout)


if __name__ == "__main__":
    main()
