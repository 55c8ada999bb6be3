"""A conditional draw at t = T: weights are what they say, and one of what was drawn is kept."""

import pytest
import torch
from test_inpainting import corner, picture, same
from test_process import tokens

from imagebart.choice import Filter
from imagebart.denoiser import Denoiser
from imagebart.editing import process
from imagebart.editing.particles import (
    choose_by_weight,
    known_log_probability,
    particle_seed,
)
from imagebart.editing.process import edit_steps, refined_steps


def upper() -> torch.Tensor:
    masked = torch.zeros(1, 4, 4, dtype=torch.bool)
    masked[:, 1:2] = True
    return masked


def test_the_weight_is_the_probability_of_the_known_tokens_after_the_mask(tiny):
    known = ~upper().flatten(1).expand(3, -1)
    x_prev, x_t = (torch.randint(12, (3, 16)) for _ in range(2))
    got = known_log_probability(tiny.denoisers[3], x_t, x_prev, None, known)
    log_p = tiny.denoisers[3](x_prev, x_t).log_softmax(-1).gather(2, x_prev[..., None])[..., 0]
    torch.testing.assert_close(got, log_p[:, 8:].double().sum(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("output", ["plain", "residual", "posterior"])
@pytest.mark.parametrize("temperature", [0.5, 0.0])
def test_weights_are_of_the_temperature_of_the_draw(make_model, output, temperature):
    """At 0, of 1: a known token may have no probability there. A scale that predicts x_1 has its
    predictions tempered."""
    model = make_model(T=3, output=output)
    one = process.MaskedProcess(model, tokens(), upper(), 2, seed=0, temperature=temperature)
    x, x_T = torch.randint(12, (2, 16)), one.start()
    scale = model.denoisers[3]
    logits = scale(x, x_T)
    if output == "posterior":
        choose = Filter(temperature)
        logits = scale.logits(choose.applied(scale.head(scale.features(x, x_T, None))), x_T)
    elif temperature:
        logits = logits / temperature
    log_p = logits.log_softmax(-1).gather(2, x[..., None])[..., 0]
    with torch.inference_mode():
        got = one.log_probability(x_T, x, 3)
    torch.testing.assert_close(got, log_p[:, 8:].double().sum(1), atol=1e-3, rtol=0)


def test_many_particles_are_the_conditional_distribution():
    """Three fillings of one token and what they make of the known one: 4000 draws against Bayes,
    within 5 standard deviations (0.04)."""
    prior, likelihood = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.5, 0.9])
    posterior = prior * likelihood / (prior * likelihood).sum()
    generator = torch.Generator().manual_seed(0)
    fillings = torch.multinomial(prior, 4000 * 64, replacement=True, generator=generator)
    fillings = fillings.reshape(4000, 64)
    weights = likelihood.log()[fillings].double().softmax(1)
    chosen = fillings[torch.arange(4000), choose_by_weight(weights, range(4000), 4)]
    share = torch.bincount(chosen, minlength=3) / 4000
    torch.testing.assert_close(share, posterior, atol=0.04, rtol=0)


def test_one_of_the_particles_is_kept(tiny):
    """Each is what t = T draws of its seed; finer scales run once."""
    x_1 = tokens()
    steps = list(edit_steps(tiny, x_1, upper(), 2, seed=[5, 9], particles=3))
    assert [step.t for step in steps] == [4, 3, 2, 1]
    for i, seed in enumerate((5, 9)):
        seeds = [particle_seed(seed, j, 4) for j in range(3)]
        assert seeds[0] == seed and len(set(seeds)) == 3
        plain = list(edit_steps(tiny, x_1, upper(), 3, seed=seeds, resampling_passes=0))
        assert any(torch.equal(steps[1].tokens[i], one) for one in plain[1].tokens)
    assert steps[0].effective is None and steps[1].effective.shape == (2,)
    assert (steps[1].effective >= 1).all() and (steps[1].effective <= 3).all()


def test_particles_weigh_what_their_known_tokens_are_probable(tiny, monkeypatch):
    said, weighed = [], []

    def log_probability(*arguments):
        said.append(known_log_probability(*arguments))
        return said[-1]

    def choose(weights, seeds, t):
        weighed.append(weights)
        return choose_by_weight(weights, seeds, t)

    monkeypatch.setattr(process, "known_log_probability", log_probability)
    monkeypatch.setattr(process, "choose_by_weight", choose)
    step = list(edit_steps(tiny, tokens(), upper(), 2, seed=[5, 9], particles=3))[1]
    weights = torch.cat(said).reshape(2, 3).softmax(1)
    torch.testing.assert_close(torch.cat(weighed), weights)
    torch.testing.assert_close(step.effective, 1 / weights.square().sum(1))


def test_what_particles_share_is_encoded_once(make_model, monkeypatch):
    """On a CPU: x_t of an image, whatever its particles draw; another image, or another condition,
    is another."""
    model, encoded = make_model(T=3, conditions={"class": 3}, condition_dropout=True), []
    denoiser, encode = model.denoisers[2], Denoiser.encode
    monkeypatch.setattr(
        Denoiser, "encode", lambda self, *a: (encoded.append(len(a[0])), encode(self, *a))[1]
    )
    x_t = torch.randint(12, (2, 16), generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[0], [0], [1]])
    state = denoiser.start(x_t[[0, 0, 0, 1]], classes[[0, 1, 2, 2]])
    assert encoded == [1, 1, 1]
    apart = [denoiser.start(x_t[[i]], classes[[k]]) for i, k in ((0, 0), (0, 1), (0, 2), (1, 2))]
    for layer, *alone in zip(state.cache, *(one.cache for one in apart), strict=True):
        assert torch.equal(layer.memory_k, torch.cat([one.memory_k for one in alone]))


def test_an_edit_by_particles_alone_is_the_edit_in_company(make_model):
    model = make_model(T=3, conditions={"class": 3}, condition_dropout=True)
    for options in ({}, {"classes": 1, "guidance": 2.0}):
        how = {"particles": 4, **options}
        together = model.inpaint(picture(), corner(), 3, seed=4, **how)
        for i in range(3):
            assert same(model.inpaint(picture(), corner(), seed=4 + i, **how)[0], together[i])


def test_particles_without_a_choice_are_the_papers_chain(tiny):
    """One particle, or no known token after the mask."""
    x_1, lowest = tokens(), torch.zeros(1, 4, 4, dtype=torch.bool)
    lowest[:, 3] = True
    for masked, particles in ((upper(), 1), (lowest, 4)):
        plain = list(edit_steps(tiny, x_1, masked, 2, seed=3, resampling_passes=0))
        chosen = list(edit_steps(tiny, x_1, masked, 2, seed=3, particles=particles))
        assert torch.equal(plain[-1].tokens, chosen[-1].tokens)


def test_particles_are_a_number_and_not_resampling_too(tiny):
    x_1 = tokens()
    with pytest.raises(ValueError, match="particles must be a whole number, at least 1, got 0"):
        list(edit_steps(tiny, x_1, upper(), particles=0))
    with pytest.raises(ValueError, match="particles needs resampling_passes=0"):
        list(refined_steps(tiny, x_1, upper(), particles=2, resampling_passes=2))
