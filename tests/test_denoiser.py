"""One scale: what each logit sees, what it is built from, and that it can be learned."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebart.conditions import ABSENT, ConditionShape, text_shape
from imagebart.denoiser import Denoiser, DenoiserConfig, decoder_places, encoder_places
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.rotary import rotation

N = 16  # tokens of the small denoisers: a 4×4 grid


def tokens(batch: int, K: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(K, (batch, N), generator=torch.Generator().manual_seed(seed))


def seen_through(table, logits, x) -> torch.Tensor:
    """Which tokens x (1, n), all different, each logit row depends on: (n, n), by gradient."""
    rows = []
    for row in logits[0]:
        (gradient,) = torch.autograd.grad(row[0] - row[1], table.weight, retain_graph=True)
        rows.append(gradient[x[0]].abs().sum(1) > 0)
    return torch.stack(rows)


@pytest.fixture
def watched(make_denoiser):
    """A denoiser with gradients whose grid can hold every code once."""

    def make(t, **shape):
        return make_denoiser(t, K=N, **shape).requires_grad_(True)

    return make


# ── what each logit sees ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [2, 3])
@pytest.mark.parametrize("conditions", [{}, {"class": 3}])
def test_a_logit_sees_the_tokens_before_it_and_no_other(watched, t, conditions):
    denoiser = watched(t, conditions=conditions)
    x = torch.randperm(N, generator=torch.Generator().manual_seed(0))[None]
    condition = torch.tensor([1]) if conditions else None
    seen = seen_through(denoiser.tokens, denoiser(x, x.flip(1), condition), x)
    assert torch.equal(seen, torch.ones(N, N).tril(-1).bool())


def test_no_image_has_no_logit(make_denoiser):
    """An empty batch is one."""
    denoiser, x = make_denoiser(conditions={"class": 3}), tokens(0)
    assert denoiser(x, x, torch.zeros(0, dtype=torch.long)).shape == (0, N, 12)


@pytest.mark.parametrize("output", ["plain", "residual", "posterior"])
def test_logits_are_float32_whatever_the_schedule_is_kept_in(make_denoiser, output):
    config = make_denoiser(3, output=output).config
    diffusion = MultinomialDiffusion(geometric(3), 12, dtype=torch.float64)
    x = tokens(1)
    assert Denoiser(config, diffusion, 2)(x, x).dtype == torch.float32


def test_every_logit_sees_all_of_x_t(watched):
    denoiser = watched(2, output="plain")
    x = torch.randperm(N, generator=torch.Generator().manual_seed(0))[None]
    assert seen_through(denoiser.noisy_tokens, denoiser(x.flip(1), x), x).all()


def test_the_last_scale_ignores_x_t(make_denoiser):
    denoiser, x = make_denoiser(3), tokens(2)
    assert torch.equal(denoiser(x, None), denoiser(x, tokens(2, seed=1)))


@pytest.mark.parametrize("t", [2, 3])
def test_the_condition_matters_everywhere(make_denoiser, t):
    denoiser, x = make_denoiser(t, conditions={"class": 3}), tokens(1)
    first, second = (denoiser(x, x, torch.tensor([c])) for c in (0, 2))
    assert ((first - second).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("t", [2, 3])
def test_every_place_is_told(watched, t):
    """Logit i is told the places of the tokens before it, and its own."""
    denoiser = watched(t, axial_positions=False)
    x = torch.arange(N)[None]
    seen = []
    for row in denoiser(x, x)[0]:
        (gradient,) = torch.autograd.grad(
            row[0] - row[1], denoiser.positions.table, retain_graph=True
        )
        seen.append(gradient.abs().sum(1) > 0)
    assert torch.equal(torch.stack(seen), torch.ones(N, N).tril().bool())


@pytest.mark.parametrize("t", [2, 3])
def test_a_rotary_place_is_told_by_attention_alone(make_denoiser, t):
    """Of equal tokens in all places nothing differs but where they are."""
    x = torch.full((1, N), 3)
    denoiser = make_denoiser(t, rotary=True)
    logits = denoiser(x, x)[0, 1:]
    assert ((logits[1:] - logits[:-1]).abs().amax(-1) > 1e-3).all()
    assert not any("positions" in name for name in denoiser.state_dict())


def test_an_axial_place_is_a_row_plus_a_column(make_denoiser):
    places = make_denoiser(2, grid=(2, 5)).positions
    for i, place in enumerate(places()):
        assert torch.equal(place, places.rows[i // 5] + places.columns[i % 5])


def test_what_a_denoiser_cannot_take_is_refused(make_denoiser):
    x, plain, conditional = tokens(2), make_denoiser(2), make_denoiser(2, conditions={"class": 3})
    for denoiser, condition in (
        (plain, torch.tensor([0, 1])),
        (conditional, None),
        (conditional, torch.tensor([0, 3])),
        (conditional, torch.tensor([-1, 0])),
    ):
        with pytest.raises(
            ValueError, match=r"must lie in \[0, 3\)|this denoiser takes|to have class always"
        ):
            denoiser(x, x, condition)
    with pytest.raises(ValueError, match=r"class must lie in \[0, 3\), got 0 to 3$"):
        conditional(x, x, torch.tensor([0, 3]))


SIZES = ("width", "heads", "head_width", "decoder_depth")


@pytest.mark.parametrize("size", [*({name: 0} for name in SIZES), {"grid": (4, 0)}], ids=str)
def test_sizes_are_at_least_1(size):
    DenoiserConfig(grid=(1, 1), **dict.fromkeys(SIZES, 1))
    with pytest.raises(ValueError, match=r"^sizes must be at least 1, got "):
        DenoiserConfig(**size)


def test_a_config_is_the_same_from_json():
    assert DenoiserConfig(grid=[2, 3]) == DenoiserConfig(grid=(2, 3))
    takes = {"class": ConditionShape(3, 1)}
    as_read = {"class": {"vocabulary": 3, "length": 1}}
    assert DenoiserConfig(conditions=as_read) == DenoiserConfig(conditions=takes)


def test_what_is_no_denoiser_is_refused(make_denoiser):
    diffusion = MultinomialDiffusion(geometric(3), 4)
    with pytest.raises(ValueError, match=r"^only a joint network serves every scale, got one of t"):
        make_denoiser(2).at(3)
    with pytest.raises(ValueError, match="takes class of length 1, got "):
        conditional = make_denoiser(2, conditions={"class": 3})
        conditional(tokens(2), tokens(2), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="output must be one of"):
        DenoiserConfig(output="logits")
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        DenoiserConfig(grid=(0, 4))
    with pytest.raises(ValueError, match="head_width must be a multiple of 4"):
        DenoiserConfig(head_width=6, rotary=True)
    for t in (1, 4):
        with pytest.raises(ValueError, match=rf"t must lie in \[2, 3\], got {t}"):
            Denoiser(DenoiserConfig(), diffusion, t)


# ── decoding gives the logits of training ─────────────────────────────────────────────────────


@settings(max_examples=25)
@given(
    t=st.integers(2, 3),
    conditions=st.sampled_from([{}, {"class": 3}]),
    output=st.sampled_from(["plain", "residual", "posterior"]),
    rotary=st.booleans(),
    qk_norm=st.booleans(),
    joint=st.booleans(),
    cuts=st.sets(st.integers(1, N - 1), max_size=5),
)
def test_any_windows_give_the_teacher_forced_logits(make_denoiser, t, cuts, **shape):
    denoiser, conditions = make_denoiser(t, **shape), shape["conditions"]
    x_prev, x_t = tokens(2), tokens(2, seed=1)
    condition = torch.tensor([2, 0]) if conditions else None
    decoding = denoiser.start(x_t, condition)
    ends = [0, *sorted(cuts), N]
    steps = [
        denoiser.step(x_prev, torch.arange(a, b).expand(2, -1), decoding)
        for a, b in itertools.pairwise(ends)
    ]
    expected = denoiser(x_prev, x_t, condition)
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [2, 3])
@pytest.mark.parametrize("end", [0, 1, 9])
def test_what_was_read_is_known_and_rows_that_are_kept_go_on(make_denoiser, t, end):
    """`read`, then `keep`, then `step`: the teacher-forced logits of the rows that are left."""
    denoiser = make_denoiser(t, conditions={"class": 3}, condition_dropout=True)
    x_prev, x_t, condition = tokens(3), tokens(3, seed=1), torch.tensor([2, ABSENT, 0])
    state, rows = denoiser.start(x_t, condition), torch.tensor([False, True, True])
    denoiser.read(x_prev, end, state)
    denoiser.keep(rows, state)
    got = denoiser.step(x_prev[rows], torch.arange(end, N).expand(2, -1), state)
    expected = denoiser(x_prev, x_t, condition)[rows, end:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(width=128, heads=4, head_width=32, grid=(2, 2)),
        dict(rotary=True, qk_norm=True, joint=True),
        dict(rotary=True, qk_norm=True, width=64, head_width=32),
    ],
)
def test_an_image_alone_gets_the_bits_it_gets_in_company(make_denoiser, t, shape):
    denoiser = make_denoiser(t, conditions={"class": 3}, **shape)
    x_prev, x_t = tokens(7)[:, : denoiser.n], tokens(7, seed=1)[:, : denoiser.n]
    condition = torch.arange(7) % 3

    def logits(rows: slice) -> torch.Tensor:
        decoding = denoiser.start(x_t[rows], condition[rows])
        at = torch.arange(denoiser.n).expand(len(x_t[rows]), -1)
        return denoiser.step(x_prev[rows], at, decoding)

    together = logits(slice(7))
    for i in range(7):
        assert torch.equal(logits(slice(i, i + 1)), together[i : i + 1])


# ── what the logits are built from ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_network_that_knows_x_1_gives_the_posterior(make_denoiser, t):
    """posterior: with softmax(f) = onehot(x_1), the logits are q(x_{t-1} | x_t, x_1) itself."""
    denoiser = make_denoiser(t, T=4, K=5)
    x_1, x_t = tokens(2, K=5), tokens(2, K=5, seed=1)
    f = 200 * torch.nn.functional.one_hot(x_1, 5).float()
    seen = x_t if denoiser.sees_x_t else None
    p = denoiser.logits(f, seen).softmax(-1)
    torch.testing.assert_close(p, denoiser.diffusion.q_posterior(x_t, x_1, t), rtol=0, atol=1e-6)


def test_a_residual_network_starts_from_what_x_t_says(make_denoiser):
    denoiser, x_t = make_denoiser(2, output="residual"), tokens(1)
    likelihood = denoiser.diffusion.log_likelihood(x_t, 2)
    f = torch.randn(1, N, 12)
    assert torch.equal(denoiser.logits(torch.zeros(1, N, 12), x_t), likelihood)
    denoiser.log_gain.fill_(math.log(3))
    torch.testing.assert_close(denoiser.logits(f, x_t), 3 * f + likelihood)


def test_a_plain_network_says_what_it_says(make_denoiser):
    f = torch.randn(1, N, 12)
    assert torch.equal(make_denoiser(2, output="plain").logits(f, tokens(1)), f)


def test_near_codes_start_near(make_denoiser):
    codes = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    codes[1] = codes[0] + 0.01
    denoiser = make_denoiser(2)
    denoiser.initialise_from_codebook(codes, torch.Generator().manual_seed(0))
    assert torch.equal(denoiser.tokens.weight, denoiser.noisy_tokens.weight)
    distance = torch.cdist(denoiser.tokens.weight, denoiser.tokens.weight)
    others = distance[0, 2:].min()
    assert 0 < distance[0, 1] < 0.2 * others


def test_what_all_codes_share_tells_no_tokens_apart():
    """The mean of the codes is taken away; one generator gives one start, by its seed."""
    codes = 5 + torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    starts = []
    for seed in (0, 0, 1):
        denoiser = Denoiser(DenoiserConfig(width=32), MultinomialDiffusion(geometric(3), 50), 3)
        denoiser.initialise_from_codebook(codes, torch.Generator().manual_seed(seed))
        starts.append(denoiser.tokens.weight.detach())
    assert starts[0].mean(0).abs().max() < 0.4 * starts[0].std()
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_a_codebook_starts_tokens_as_small_as_any_other_weights():
    """Standard deviation 0.02, whatever the size of the codes."""
    denoiser = Denoiser(DenoiserConfig(width=256), MultinomialDiffusion(geometric(3), 50), 2)
    for size in (0.01, 100):
        codes = size * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        denoiser.initialise_from_codebook(codes, torch.Generator().manual_seed(0))
        assert denoiser.tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("t", [2, 3])
@pytest.mark.parametrize("axial", [True, False])
def test_weights_start_small(t, axial):
    """Normal with standard deviation 0.02, biases 0, gains 1; more than 500 numbers in each table
    put the measured one within 15 % (6 σ), and no number beyond 6 σ."""
    takes = {
        "class": ConditionShape(9, 1),
        "text": text_shape(4, 20),
        "map": ConditionShape(7, 256),
    }
    biases = dict(bias=True, head_bias=True, conditions=takes)
    config = DenoiserConfig(width=64, heads=2, encoder_depth=1, axial_positions=axial, **biases)
    denoiser = Denoiser(config, MultinomialDiffusion(geometric(3), 50), t)
    for name, p in denoiser.named_parameters():
        if p.numel() > 500:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), name
            assert abs(p.mean().item()) < 6 * 0.02 / p.numel() ** 0.5, name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            assert 0 < p.abs().max() < 6 * 0.02, name


# ── where slots lie ───────────────────────────────────────────────────────────────────────────

GRID = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
TAKES = {"class": ConditionShape(9, 1), "text": text_shape(2, 20), "map": ConditionShape(7, 6)}


@pytest.mark.parametrize("t", [2, 3])
def test_slots_turn_by_the_places_that_they_have_or_predict(make_denoiser, t):
    """A class and a text lie nowhere; the memory is turned for the decoder as in the encoder."""
    denoiser = make_denoiser(t, grid=(2, 3), conditions=TAKES, rotary=True)
    before = [[0, 0]] * 3 + GRID
    decoder = denoiser.decoder
    if t == 2:
        memory = torch.tensor([*before, [0, 0], *GRID])
        assert torch.equal(encoder_places(denoiser.config), memory)
        assert torch.equal(denoiser.encoder.turns, rotation(memory, 8))
        assert torch.equal(decoder.memory_turns, denoiser.encoder.turns)
        assert torch.equal(decoder.turns, rotation(torch.tensor(GRID), 8))
    else:
        assert torch.equal(decoder.turns, rotation(torch.tensor([*before, *GRID]), 8))
        assert decoder.memory_turns is None
    prefix = denoiser.encoder_prefix if t == 2 else denoiser.prefix
    assert [name for name, _ in prefix.named_parameters() if "positions" in name] == [
        "text.positions"
    ]
    unturned = make_denoiser(t, grid=(2, 3), conditions=TAKES)
    assert unturned.decoder.turns is None and encoder_places(unturned.config) is None
    assert decoder_places(unturned.config, True) is None


@pytest.mark.parametrize(
    "conditions, dropout, place",
    [({"class": 3}, False, 0), ({"class": 3}, True, -1), ({"map": 2}, False, -1), ({}, False, -1)],
)
def test_the_start_stands_last_but_before_a_class_that_is_always_given(
    make_denoiser, conditions, dropout, place
):
    denoiser = make_denoiser(3, conditions=conditions, condition_dropout=dropout)
    length = sum(shape.length for shape in denoiser.config.conditions.values())
    condition = torch.ones(2, length, dtype=torch.int64) if length else None
    vectors, present = denoiser.decoder_prefix(2, condition)
    assert vectors.shape == (2, denoiser.prefix.length, 16) == (2, length + 1, 16)
    assert torch.equal(vectors[:, place], denoiser.prefix.vector.expand(2, 16))
    assert present is None if not length else present.all()
    if dropout:
        _, present = denoiser.decoder_prefix(1, condition[:1] * 0 + ABSENT)
        assert present.tolist() == [[False, True]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_layers_have_the_biases_and_norms_of_the_configuration(
    make_denoiser, bias, head_bias, qk_norm
):
    denoiser = make_denoiser(2, bias=bias, head_bias=head_bias, qk_norm=qk_norm)
    names = {name for name, _ in denoiser.named_parameters()}
    assert ("head.bias" in names) == head_bias
    for layer in ("encoder.blocks.0.attention", "decoder.blocks.1.attention"):
        assert (f"{layer}.qkv.bias" in names) == bias
        assert (f"{layer}.sharpness" in names) == qk_norm
    assert ("decoder.blocks.0.cross.kv.bias" in names) == bias
    assert len(denoiser.encoder.blocks) == 1 and len(denoiser.decoder.blocks) == 2


# ── one network for all scales ────────────────────────────────────────────────────────────────


@pytest.fixture
def joint(make_denoiser):
    return make_denoiser(
        4, T=4, joint=True, conditions={"class": 3}, output="residual"
    ).requires_grad_(True)


def test_a_joint_network_has_the_same_weights_at_every_scale(joint):
    for t in (2, 3, 4):
        assert joint.at(t).t == t
        mine, its = joint.named_parameters(), joint.at(t).named_parameters()
        assert all(a is b for (_, a), (_, b) in zip(mine, its, strict=True))
    with pytest.raises(ValueError, match=r"t must lie in \[2, 4\], got 5"):
        joint.at(5)


@pytest.mark.parametrize("told", ["scale_vectors", "encoder_prefix.vector", "log_gain"])
def test_a_joint_network_is_told_its_scale_everywhere(joint, told):
    """Each of the three ways reaches every logit, and only by the row of t."""
    x = tokens(1)
    logits = joint.at(3)(x, x, torch.tensor([1]))[0]
    for place in logits:
        (gradient,) = torch.autograd.grad(
            place[0] - place[1], joint.get_parameter(told), retain_graph=True
        )
        reached = gradient.reshape(3, -1).abs().sum(1) > 0
        assert reached.tolist() == [False, True, False]


def test_every_weight_of_a_joint_network_has_a_gradient_at_every_scale(joint):
    """Zero for other scales' rows, not missing: ranks wait for all of them."""
    x = tokens(1)
    for t in (2, 3, 4):
        joint.zero_grad(set_to_none=True)
        joint.at(t).loss(x, x, x, torch.tensor([1])).sum().backward()
        assert [name for name, p in joint.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("t", [2, 3])
def test_the_loss_is_that_of_the_logits(make_denoiser, t):
    denoiser, x_prev, x_t, x_1 = make_denoiser(t), *(tokens(5, seed=i) for i in range(3))
    expected = denoiser.diffusion.loss_t(denoiser(x_prev, x_t), x_t, x_1, t)
    torch.testing.assert_close(denoiser.loss(x_prev, x_t, x_1), expected)


# ── it can be learned ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("T", [2, 3])
def test_one_batch_is_learned_down_to_its_entropy(T):
    """t = 2. Eight sequences cost log 8 nats to tell apart: log 8 / 16 a token. For T = 3 the
    denoiser sees x_2, which tells them apart already."""
    torch.manual_seed(0)
    diffusion = MultinomialDiffusion(geometric(T), 12)
    shape = dict(grid=(4, 4), width=32, heads=2, head_width=16, encoder_depth=1, decoder_depth=1)
    denoiser = Denoiser(DenoiserConfig(**shape), diffusion, 2)
    optimiser = torch.optim.AdamW(denoiser.parameters(), 5e-3)
    x_1 = tokens(8)
    x_2 = diffusion.q_sample_marginal(x_1, 2, torch.Generator().manual_seed(0))
    for step in range(150):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 150)
        loss = diffusion.loss_t(denoiser(x_1, x_2), x_2, x_1, 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    floor = math.log(8) / N if T == 2 else 0
    assert floor - 1e-3 <= loss.item() <= floor + 0.03
