"""The VQGAN against its discriminator: a step of both, and codes brought back into use."""

from collections.abc import Iterator
from functools import partial

import torch
from repainting import Repainter
from saving import without_infinite
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training import warmup_cosine

from imagebart import distributed, perceptual
from imagebart.checkpoint import EMA
from imagebart.notation import Images
from imagebart.presets import CompressionRecipe
from imagebart.vqgan import VQGAN


class Usage:
    """How often each code was used since the last revival, and since the last report: each rank
    counts its own images, a checkpoint has the sums."""

    def __init__(self, size: int, ranks: distributed.Ranks):
        self.counts, self.ranks = torch.zeros(2, size, device=ranks.device), ranks
        self.since_revival, self.since_report = self.counts

    def note(self, code: Tensor, finite: Tensor) -> None:
        """A batch used these codes, if its gradients were finite."""
        each = finite.to(self.counts.dtype).expand(2, code.numel())
        self.counts.index_add_(1, code.flatten(), each)  # bincount would wait for a GPU

    def unused(self) -> Tensor:
        """Which codes no rank has used since the last revival; the next one begins."""
        unused = distributed.total(self.since_revival, self.ranks) < 1
        self.since_revival.zero_()
        return unused

    def reported(self) -> int:
        """How many codes were used since the last report; the next one begins."""
        used = distributed.total(self.since_report, self.ranks) > 0
        self.since_report.zero_()
        return int(used.sum())

    def total(self) -> Tensor:
        return distributed.total(self.counts, self.ranks)

    state_dict = total

    def load_state_dict(self, total: Tensor) -> None:
        self.counts.zero_()
        if self.ranks.is_main:  # it is the sum that counts
            self.counts.copy_(total)


class Judgements:
    """ā_real, ā_fake: moving averages of what the discriminator says of images and of
    reconstructions, on all ranks."""

    def __init__(self, ranks: distributed.Ranks):
        self.averages, self.ranks = torch.zeros(2, device=ranks.device), ranks

    def move(self, now: Tensor, finite: Tensor) -> None:
        moved = self.averages.lerp(now, 0.01)
        self.averages.copy_(torch.where(finite, moved, self.averages))

    def state_dict(self) -> Tensor:
        return self.averages

    def load_state_dict(self, averages: Tensor) -> None:
        self.averages.copy_(averages)


class Adversaries:
    """The VQGAN and its discriminator, and what each learns by.

    `by_known`: the VQGAN repaints images where they are marked. What is frozen of it stays so.
    `at_once`: images of a rank in one pass; a step sums the gradients of as many as it takes.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        recipe: CompressionRecipe,
        ranks: distributed.Ranks,
        by_known: bool,
        at_once: int,
    ):
        self.recipe, self.ranks, self.at_once = recipe, ranks, at_once
        shape = recipe.discriminator_channels, recipe.discriminator_layers
        features = perceptual.PERCEPTUAL[recipe.perceptual]
        networks = vqgan, perceptual.PatchDiscriminator(*shape), features()
        self.vqgan, self.discriminator, self.features = (
            network.to(ranks.device, memory_format=torch.channels_last) for network in networks
        )
        learner = Repainter(self.vqgan) if by_known else self.vqgan
        self.vqgan_ranks, self.discriminator_ranks = learner, self.discriminator
        if ranks.world > 1:
            self.vqgan_ranks = DistributedDataParallel(learner)
            self.discriminator_ranks = DistributedDataParallel(self.discriminator)
        adam = partial(torch.optim.AdamW, weight_decay=0.0, fused=True)
        learns = [p for p in self.vqgan.parameters() if p.requires_grad]
        self.optimiser = adam(learns, lr=recipe.learning_rate, betas=(0.9, 0.95))
        judges, rate = self.discriminator.parameters(), recipe.discriminator_learning_rate
        self.discriminator_optimiser = adam(judges, lr=rate, betas=(0.5, 0.9))
        self.ema = EMA(self.vqgan, recipe.ema_decay)
        self.usage = Usage(self.vqgan.quantiser.size, ranks)
        self.judgements = Judgements(ranks)

    def parts(self) -> dict:
        """What a checkpoint holds, by name."""
        return {
            "vqgan": self.vqgan,
            "ema": self.ema,
            "discriminator": self.discriminator,
            "optimiser": self.optimiser,
            "discriminator_optimiser": self.discriminator_optimiser,
            "usage": self.usage,
            "judgements": self.judgements,
        }

    def learned(self) -> list[Tensor]:
        """All weights."""
        networks = *self.vqgan.parameters(), *self.discriminator.parameters()
        return [*networks, *self.ema.average.values()]

    def learn(
        self, image: Images, how: bool | Tensor, step: int, quantised: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A step of both: what was measured, and whether all gradients were finite.

        `how` is what the VQGAN takes beside images: whether it quantises, or what is marked.
        """
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            factor = warmup_cosine(step, recipe.steps, recipe.warmup_steps)
            group["lr"] = recipe.learning_rate * factor
        adversarial = step >= recipe.adversarial_start
        reconstruction, code, measured, finite = self._reconstruct(image, how, adversarial)
        if quantised:
            self.usage.note(code, finite)
        measured["discriminator"] = torch.zeros((), device=self.ranks.device)
        if step >= recipe.adversarial_start - recipe.discriminator_head_start:
            measured["discriminator"], now, judged = self._judge(image, reconstruction.detach())
            finite = finite & judged
            self.judgements.move(now, finite)
        return measured, finite

    def _reconstruct(
        self, image: Images, how: bool | Tensor, adversarial: bool
    ) -> tuple[Images, Tensor, dict[str, Tensor], Tensor]:
        """A step of the VQGAN, x_0 → reconstruction: codes, losses, and whether it had finite
        gradients."""
        recipe, outputs = self.recipe, []
        measured = dict.fromkeys(("rec", "codebook", "balance"), torch.zeros(()))
        self.optimiser.zero_grad(set_to_none=True)
        for rows, share, is_last in self._passes(image):
            x, of_x = image[rows], how[rows] if isinstance(how, Tensor) else how
            with distributed.gathering(self.vqgan_ranks, is_last):
                with distributed.autocast(self.ranks.device, recipe.precision):
                    reconstruction, codebook, code = self.vqgan_ranks(x, of_x)
                    weights = recipe.perceptual_weight, recipe.detail, recipe.edges
                    rec = perceptual.reconstruction_loss(x, reconstruction, self.features, *weights)
                    loss, balance = rec + codebook, torch.zeros((), device=self.ranks.device)
                    if adversarial:
                        self.discriminator.requires_grad_(False)
                        adv = perceptual.generator_loss(self.discriminator(reconstruction))
                        balance = recipe.adversarial_weight * self._balanced(rec, adv)
                        loss = loss + balance * adv
                (share * loss).backward()
            outputs.append((reconstruction.detach(), code))
            of_pass = dict(rec=rec, codebook=codebook, balance=balance)
            measured = {k: measured[k] + share * v.detach() for k, v in of_pass.items()}
        norm, finite = descend(self.vqgan, self.optimiser)
        self.ema.update()
        reconstruction, code = (torch.cat(each) for each in zip(*outputs, strict=True))
        return reconstruction, code, measured | {"norm": norm}, finite

    def _judge(self, image: Images, reconstruction: Images) -> tuple[Tensor, Tensor, Tensor]:
        """A step of the discriminator, real or reconstructed: its loss, what it says of each, the
        mean over ranks, and whether its gradients are finite."""
        loss, said = torch.zeros((), device=self.ranks.device), []
        self.discriminator.requires_grad_(True)
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        for rows, share, is_last in self._passes(image):
            with distributed.gathering(self.discriminator_ranks, is_last):
                with distributed.autocast(self.ranks.device, self.recipe.precision):
                    both = self.discriminator_ranks(torch.cat([image[rows], reconstruction[rows]]))
                    real, fake = both.chunk(2)
                    pull = perceptual.lecam(real, fake, self.judgements.averages)
                    hinge = perceptual.discriminator_loss(real, fake)
                    of_pass = share * (hinge + self.recipe.lecam_weight * pull)
                of_pass.backward()
            loss = loss + of_pass.detach()
            said.append(share * torch.stack([x.detach().float().mean() for x in (real, fake)]))
        _, finite = descend(self.discriminator, self.discriminator_optimiser)
        return loss, distributed.mean(torch.stack(said).sum(0), self.ranks), finite

    def _passes(self, image: Images) -> Iterator[tuple[slice, float, bool]]:
        """Rows of this rank's images that go through a network at once, which share of them all
        they are, and whether they are the last."""
        for piece in distributed.split(range(len(image)), self.at_once):
            rows = slice(piece.start, piece.stop)
            yield rows, len(piece) / len(image), piece.stop == len(image)

    def _balanced(self, rec: Tensor, adv: Tensor) -> Tensor:
        """λ of eq. 4's two terms, from the gradients of a pass of all ranks."""
        at = self.vqgan.last_layer()
        gradients = (torch.autograd.grad(term, at, retain_graph=True)[0] for term in (rec, adv))
        over_all = (distributed.mean(gradient, self.ranks) for gradient in gradients)
        return perceptual.adaptive_weight(*over_all)

    @torch.no_grad()
    def revive(self, image: Images, seed: int, step: int) -> None:
        """Move codes unused since the last revival onto this batch's latents (the first time,
        all)."""
        z = torch.cat([self.vqgan.latents(image[rows]) for rows, *_ in self._passes(image)])
        z = distributed.gathered(z, self.ranks)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        self.vqgan.quantiser.revive(self.usage.unused(), z, generator)


def descend(network: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
    """A step down a network's gradients: their norm, and whether they were finite; those that are
    not are left out."""
    norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    finite = without_infinite(network.parameters(), norm)
    optimiser.step()
    return norm, finite


def revival_is_due(step: int, recipe: CompressionRecipe, new: bool) -> bool:
    """When a new codebook meets its first latents; then at intervals, until codes may settle."""
    since = step - recipe.quantise_start
    return (
        since % recipe.revive_every == 0
        and (since > 0 or (since == 0 and new))
        and (step < 0.8 * recipe.steps)
    )
