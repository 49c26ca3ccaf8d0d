"""Distillation runs: a many-step teacher, and a student that takes each scale in one network evaluation.

The student has the teacher's network and starts from its exported weights, which are averaged ones, or it starts from
another model, whose networks may be smaller. Encoder and bottleneck are shared and frozen, the ladder is the teacher's;
the teacher stays in evaluation mode. The mathematics is in `losses.distillation` and
`losses.adversarial`.

A teacher may be guided. The student is not: it learns the guided result in one evaluation, with the latent.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.data import CodedImages
from stepladder.encoders import FrozenEncoder
from stepladder.errors import ConfigError
from stepladder.losses import (
    DiscriminatorHeads,
    FeaturePyramid,
    Rollout,
    balanced_gradient,
    discriminator_loss,
    feature_distance,
    feature_network,
    perceptual_distance,
    renoised_rollout,
    shared_start_rollout,
    student_loss,
)
from stepladder.sampling.denoiser import Denoiser
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training.coding import coded
from stepladder.training.config import AdversarialConfig, DistillConfig, RegressConfig
from stepladder.training.frozen import fingerprint_of_files
from stepladder.training.ladder import LadderObjective, draw_dropped, run_on_images
from stepladder.training.objective import OptimiserGroup
from stepladder.training.records import StepRecord

__all__ = ["AdversarialObjective", "RegressObjective", "distill", "make_student"]


def distill(
    config: DistillConfig,
    run_dir: Path,
    *,
    features: FeaturePyramid | None = None,
    resume: bool = False,
    on_record: Callable[[StepRecord], None] = lambda _: None,
    stop_after: int | None = None,
) -> Path:
    """Distils a model to one network evaluation per scale.

    Args:
        config: The run.
        run_dir: Where its files go; without `resume` it must hold no run yet.
        features: Frozen network of the perceptual loss and of the discriminator, a module; by default
            EfficientNet-Lite0 with its ImageNet weights.
        resume: Go on from the newest checkpoint there, discriminator included.
        on_record: Called with every record, by the main process.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end, and 0 takes
            none and leaves the model that the run starts from.

    Returns:
        Folder of the student (averaged weights); its `steps_per_stage` is 1.

    Raises:
        CheckpointError: If the teacher, or what the student starts from, cannot be loaded.
        ConfigError: If the teacher is to be guided, and has no null latent; if the student has another encoder or
            ladder; or if an initial estimate shall not learn that no layers of its own make.
        OutputError: If the folder holds another run, or cannot be written.
        DataError: If the data cannot be used.
        TrainingError: If the loss stops being finite.
    """

    def objective(stored: TokenizerConfig | None) -> LadderObjective:
        teacher = Tokenizer.from_pretrained(config.teacher)
        student = make_student(_start(config, teacher)) if stored is None else _fresh(stored)
        _open_encoder(student, config)
        if not config.train_initial:
            _freeze_initial(student)
        rate = 1.0 if config.optimiser.linear_rate_scale is None else config.optimiser.linear_rate_scale
        match config.recipe:
            case RegressConfig() as recipe:
                wanted = features or (feature_network() if recipe.perceptual_weight else None)
                return RegressObjective(student, teacher, recipe, wanted, linear_rate_scale=rate)
            case AdversarialConfig() as recipe:
                with torch.random.fork_rng(devices=[]):
                    torch.set_rng_state(generator(config.seed).get_state())
                    wanted = features or feature_network()
                    return AdversarialObjective(student, teacher, recipe, wanted, linear_rate_scale=rate)

    return run_on_images(objective, config, run_dir, resume=resume, on_record=on_record, stop_after=stop_after)


def _start(config: DistillConfig, teacher: Tokenizer) -> Tokenizer:
    """The model from which the student starts."""
    if config.student is None:
        return teacher
    start = Tokenizer.from_pretrained(config.student)
    if start.fingerprint() != teacher.fingerprint():
        raise ConfigError(
            f"student '{config.student}' has another encoder than teacher '{config.teacher}'. Both read the same "
            "latents. Name a model that was trained on the teacher's encoder."
        )
    if start.schedule != teacher.schedule:
        raise ConfigError(
            f"student '{config.student}' has another ladder than teacher '{config.teacher}', which teaches it stage by "
            "stage. Name a model with the teacher's tokenizer.ladder."
        )
    return start


def _open_encoder(student: Tokenizer, config: DistillConfig) -> None:
    """Opens the frozen encoder of the teacher, where images shall be encoded by one; else looks whether files fit."""
    if isinstance(student.encoder, FrozenEncoder):
        if config.data.latents:
            fingerprint_of_files(student.encoder, config)
        else:
            student.encoder.open(config.encoder)
    elif config.encoder is not None:
        raise ConfigError(
            f"encoder '{config.encoder}' does not fit teacher '{config.teacher}', which holds its own. Leave it out."
        )


def _freeze_initial(student: Tokenizer) -> None:
    """Keeps the layers that make the initial estimate as the teacher has them."""
    layers = student.decoder.network.initial_layers
    if layers is None:
        raise ConfigError(
            "train_initial = false does not fit a decoder that makes no initial estimate by layers of its own. "
            "Accepted: decoders of kind 'conv'. Leave it out."
        )
    layers.requires_grad_(False)


def make_student(start: Tokenizer) -> Tokenizer:
    """A copy of the teacher, or of another model, that takes one step per scale, without guidance."""
    student = _fresh(replace(start.config, steps_per_stage=1, guidance=GuidanceConfig(), description=""))
    student.load_state_dict(start.state_dict())
    return student


def _fresh(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer whose weights are yet to be loaded; the draw of those that it has leaves no trace."""
    with torch.random.fork_rng(devices=[]):
        return Tokenizer(config)


class _DistillationObjective(LadderObjective):
    """What both recipes share: a frozen teacher and encoder, and denoisers of a batch."""

    def __init__(
        self,
        student: Tokenizer,
        teacher: Tokenizer,
        features: FeaturePyramid | None,
        guidance: GuidanceConfig | None,
        linear_rate_scale: float,
    ) -> None:
        super().__init__(student, linear_rate_scale=linear_rate_scale)
        self.teacher = teacher.eval().requires_grad_(False)
        self.guidance = teacher.config.guidance if guidance is None else guidance
        teacher.decoder.check_guidance(self.guidance)
        self.features = features
        student.encoder.requires_grad_(False)
        student.bottleneck.requires_grad_(False)

    def frozen(self) -> Iterable[nn.Module]:
        """All but the student's decoder and the discriminator."""
        yield from (self.teacher, self.tokenizer.encoder, self.tokenizer.bottleneck)
        if self.features is not None:
            yield self.features

    def networks(self) -> tuple[nn.Module, ...]:
        """The student's, and the teacher's decoder."""
        return (*super().networks(), self.teacher.decoder.network)

    def denoisers(
        self, batch: Float[Tensor, "b 3 H W"] | CodedImages
    ) -> tuple[Float[Tensor, "b 3 H W"], Denoiser, Denoiser]:
        """Images, and student and teacher, both bound to their latents."""
        student = self.tokenizer.decoder.network
        with torch.no_grad():
            images, code = coded(self.tokenizer, batch)
            teacher = self.teacher.decoder.bind(code.latent, guidance=self.guidance)
        return images, student.bind(code.latent, draw_dropped(student, code.latent, 0.0)), teacher


class RegressObjective(_DistillationObjective):
    """The student's step is regressed on the teacher's steps; see `losses.distillation`."""

    def __init__(
        self,
        student: Tokenizer,
        teacher: Tokenizer,
        config: RegressConfig,
        features: FeaturePyramid | None,
        *,
        linear_rate_scale: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, features, config.guidance, linear_rate_scale)
        self.config = config

    def forward(
        self, batch: Float[Tensor, "b 3 H W"] | CodedImages, seed: int, progress: float
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of a batch of images in [-1, 1]; all noise follows from `seed`."""
        images, student, teacher = self.denoisers(batch)
        rollout = shared_start_rollout(
            student,
            teacher,
            self.tokenizer.schedule,
            shape=images.shape,
            generator=generator(seed, images.device),
            teacher_steps=self.config.teacher_steps,
            unrolled=progress >= self.config.unrolled_from,
        )
        perceptual = images.new_zeros(())
        if self.features is not None and self.config.perceptual_weight:
            perceptual = perceptual_distance(self.features, rollout.image, images).mean()
        loss = torch.stack(rollout.errors).sum() + self.config.perceptual_weight * perceptual
        return loss, {"total": loss, **_by_stage(rollout), "perceptual": perceptual}


class AdversarialObjective(_DistillationObjective):
    """Teacher, feature network and discriminator judge what the student decodes.

    The losses are balanced at the image: each gives its gradient there, and one backward pass carries their sum through
    the student. Discriminator and student learn from the same batch; the heads see a detached image, and the student
    sees the heads as constants. With `every_scale`, each stage's image has heads of its own.
    """

    features: FeaturePyramid

    def __init__(
        self,
        student: Tokenizer,
        teacher: Tokenizer,
        config: AdversarialConfig,
        features: FeaturePyramid,
        *,
        linear_rate_scale: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, features, config.guidance, linear_rate_scale)
        self.config = config
        stages = student.schedule.num_stages
        self.judged = range(stages) if config.every_scale else range(stages - 1, stages)
        self.heads = nn.ModuleList(DiscriminatorHeads(features.channels, config.head_width) for _ in self.judged)

    def discriminator(self) -> nn.Module:
        """The heads on the feature network."""
        return self.heads

    def optimiser_groups(self) -> list[OptimiserGroup]:
        """Student and discriminator, clipped apart."""
        heads = OptimiserGroup(list(self.heads.parameters()), self.config.head_rate, part="discriminator")
        return [*super().optimiser_groups(), heads]

    def forward(
        self, batch: Float[Tensor, "b 3 H W"] | CodedImages, seed: int, progress: float
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of a batch of images in [-1, 1]; all noise and times follow from `seed`."""
        config = self.config
        images, student, teacher = self.denoisers(batch)
        rollout = renoised_rollout(
            student,
            teacher,
            self.tokenizer.schedule,
            shape=images.shape,
            generator=generator(seed, images.device),
            teacher_steps=config.teacher_steps,
        )
        stages = self.tokenizer.schedule.stages
        losses = [
            self._judge(rollout, i, down(images, stages[i].downscale), heads, progress)
            for i, heads in zip(self.judged, self.heads, strict=True)
        ]
        backward, *parts = (torch.stack(values).sum() for values in zip(*losses, strict=True))
        pixels, perceptual, adversarial, discriminator = parts
        distance = config.distillation_weight * torch.stack(rollout.errors).sum() + config.pixel_weight * pixels
        return distance + backward + discriminator, {
            "total": distance + config.perceptual_weight * perceptual,
            **_by_stage(rollout),
            "pixels": pixels,
            "perceptual": perceptual,
            "adversarial": adversarial,
            "discriminator": discriminator,
        }

    def _judge(
        self, rollout: Rollout, stage: int, real: Tensor, heads: nn.Module, progress: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What one stage's image has of features and heads, for the backward pass; then its losses by name."""
        config = self.config
        decoded = rollout.images[stage]
        share = config.adversarial_share if progress >= config.adversarial_from else 0.0
        with torch.enable_grad():
            # Not a leaf: hooks of profilers on the inputs of a module do not take one inside autograd.grad.
            image = decoded.detach().requires_grad_().clone()
            found = self.features.pyramid(image)
            with torch.no_grad():
                wanted = self.features.pyramid(real)
            perceptual = feature_distance(found, wanted).mean()
            pixels = (decoded - real).square().mean()
            distance = config.distillation_weight * rollout.errors[stage] + config.pixel_weight * pixels
            (towards_both,) = torch.autograd.grad(distance, decoded, retain_graph=True)
            (towards_real,) = torch.autograd.grad(config.perceptual_weight * perceptual, image, retain_graph=share > 0)
            gradient = towards_both + towards_real
            if share:
                (towards_fooling,) = torch.autograd.grad(student_loss(heads(found)), image)
                gradient = balanced_gradient(gradient, towards_fooling, share)
        scores, fake_scores = heads(wanted), heads([layer.detach() for layer in found])
        discriminator = discriminator_loss(scores, fake_scores)
        backward = (decoded * (gradient - towards_both)).sum()
        return backward, pixels, perceptual, student_loss(fake_scores), discriminator


def _by_stage(rollout: Rollout) -> dict[str, Tensor]:
    return {f"teacher_{i}": error for i, error in enumerate(rollout.errors)}
