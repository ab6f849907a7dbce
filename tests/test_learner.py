"""One training step, on every device there is, and what training promises of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from datasets.moons import Moons
from flows import Flow, ResidualFlow
from flows.activations import activation_names
from flows.estimators import Exact, LogDetEstimator, RussianRoulette, Truncated
from flows.idensenet import IDenseNet
from flows.implicit_flow import ImplicitFlow
from flows.residual_flow import FlowOfBlocks
from training import evaluation
from training.evaluation import HeldOut, evaluate
from training.learner import Learner
from training.optimizers import adam, muon
from training.trainer import Trainer

ESTIMATORS = {
    "exact": Exact(),
    "exact, vjp": Exact("vjp"),
    "truncated": Truncated(),
    "truncated, neumann, saving": Truncated(gradient="neumann", memory="saving"),
    "roulette": RussianRoulette(),
    "roulette, series": RussianRoulette(gradient="series", memory="standard"),
    "roulette, one N a batch": RussianRoulette(share="batch", distribution="poisson"),
    "roulette, vjp": RussianRoulette(jacobian="vjp"),
}


def make_learner(
    estimator: LogDetEstimator, device: str = "cpu", activation: str = "lipswish", ema_decay: float = 0.9
) -> Learner:
    torch.manual_seed(0)
    flow = ResidualFlow(2, estimator, blocks=3, width=8, activation=activation).to(device)
    optimizer = adam(flow, lr=1e-2)
    return Learner(flow, optimizer, clip_norm=1.0, ema_decay=ema_decay, power_iterations=1)


def batch(n: int = 64) -> torch.Tensor:
    return Moons().sample(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("estimator", ["dense", "vjp"])
@pytest.mark.parametrize("family", [ResidualFlow, IDenseNet, ImplicitFlow])
def test_a_step_of_muon_on_the_meta_device(family: type[FlowOfBlocks], estimator: str) -> None:
    flow = family(2, RussianRoulette(jacobian=estimator), blocks=3, width=8).to("meta")
    learner = Learner(flow, muon(flow, lr=1e-2), clip_norm=1.0, ema_decay=0.9, power_iterations=1)
    learner.backward(torch.empty(64, 2, device="meta"))
    learner.update(1.0)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("activation", activation_names())
def test_a_step_on_the_meta_device(estimator: LogDetEstimator, activation: str) -> None:
    """Where there are no values, a hidden `.item()`, or a tensor made on another device, is an error."""
    learner = make_learner(estimator, "meta", activation)
    for _ in range(2):
        loss = learner.backward(torch.empty(64, 2, device="meta"))
        learner.update(1.0)
    assert loss.device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_step_on_cuda_does_not_wait_for_it(estimator: LogDetEstimator) -> None:
    learner = make_learner(estimator, "cuda")
    x = batch().cuda()
    learner.backward(x)
    learner.update(1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.backward(x)
        learner.update(1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_steps_lower_the_exact_nll(estimator: LogDetEstimator) -> None:
    learner, x = make_learner(estimator, ema_decay=0.0), batch(256)
    learner.initialize(x)
    before = float(-learner.flow.eval().log_prob(x).detach().mean())
    learner.flow.train()
    for _ in range(60):
        learner.backward(x)
        learner.update(1.0)
    learner.converge()
    assert float(-learner.flow.eval().log_prob(x).detach().mean()) < before - 0.1


def test_the_gradient_is_that_of_the_nll() -> None:
    learner, x = make_learner(Exact()), batch()
    learner.initialize(x)
    loss = learner.backward(x)
    found = [parameter.grad.clone() for parameter in learner.flow.parameters()]
    learner.flow.eval()  # the plain path, layer by layer
    expected = -learner.flow.log_prob(x).mean()
    torch.testing.assert_close(loss, expected.detach())
    for a, b in zip(found, torch.autograd.grad(expected, list(learner.flow.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [0.1, 1e9])
def test_the_gradient_is_cut_to_the_norm_and_no_further(norm: float) -> None:
    learner, x = make_learner(Exact()), batch()
    learner.clip_norm = norm
    learner.backward(x)
    before = [parameter.grad.clone() for parameter in learner.flow.parameters()]
    size = math.sqrt(sum(float((gradient**2).sum()) for gradient in before))
    assert float(learner.update(1.0)) == pytest.approx(size, rel=1e-5)
    for parameter, gradient in zip(learner.flow.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * min(1, norm / size), rtol=1e-4, atol=1e-8)


def test_the_average_begins_as_the_flow_is_initialized() -> None:
    learner = make_learner(Exact())
    learner.initialize(3 * batch() + 1)
    for name, tensor in learner.average.state_dict().items():
        assert torch.equal(tensor, learner.flow.state_dict()[name])


def test_the_average_is_the_exponential_moving_average() -> None:
    learner, x = make_learner(Exact(), ema_decay=0.5), batch()
    expected = [parameter.detach().clone() for parameter in learner.flow.parameters()]
    for step in range(1, 16):
        learner.backward(x)
        learner.update(1.0)
        decay = min(0.5, step / (step + 10))
        expected = [decay * a + (1 - decay) * p.detach() for a, p in zip(expected, learner.flow.parameters())]
    for a, b in zip(learner.average.parameters(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_learning_rate_follows() -> None:
    learner = make_learner(Exact())
    learner.backward(batch())
    learner.update(0.25)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_spectral_norms_stay_converged_in_training() -> None:
    """By five power iterations a step, at a peak learning rate, seen after every tenth step."""
    torch.manual_seed(0)
    flow = ResidualFlow(2, RussianRoulette(), blocks=3, width=64)
    learner = Learner(flow, adam(flow, lr=5e-3), clip_norm=1.0, ema_decay=0.99, power_iterations=5)
    learner.initialize(batch(1024))
    for step in range(200):
        learner.backward(Moons().sample(128, torch.Generator().manual_seed(step)))
        learner.update(1.0)
        if step % 10 == 0:
            assert max(flow.lipschitz_constants()) < 1


@pytest.fixture(scope="module")
def trained() -> Flow:
    """A flow after a few hundred steps: far from the identity, and not yet good."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    flow = ResidualFlow(2, RussianRoulette(), blocks=6, width=32)
    flow.compile_for(torch.device("cpu"))  # for time's sake; what is returned is plain
    learner = Learner(flow, adam(flow, lr=5e-3), clip_norm=1.0, ema_decay=0.99, power_iterations=2)
    x = Moons().sample(400 * 256, torch.Generator().manual_seed(2)).split(256)
    learner.initialize(x[0])
    for part in x:
        learner.backward(part)
        learner.update(1.0)
    learner.converge()
    plain = ResidualFlow(2, RussianRoulette(), blocks=6, width=32)
    plain.load_state_dict(learner.average.state_dict())
    return plain.eval()


@pytest.fixture
def far() -> torch.Tensor:
    """Points out to six standard deviations of the moons."""
    angle = torch.linspace(0, 6.2832, 400)
    center, spread = torch.tensor([0.0, 0.3]), torch.tensor([1.7, 0.9])
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    return torch.cat([center + radius * spread * circle for radius in (0.5, 1.0, 2.0, 4.0, 6.0)])


class TestTrainedFlow:
    def test_density_integrates_to_one(self, trained: Flow) -> None:
        axis = torch.linspace(-8, 8, 401)
        with torch.no_grad():
            points = torch.cartesian_prod(axis, axis)
            total = sum(float(trained.log_prob(part).double().exp().sum()) for part in points.split(20_000)) * 0.04**2
        assert total == pytest.approx(1, abs=1e-3)

    def test_inverse_undoes_forward(self, trained: Flow, far: torch.Tensor) -> None:
        with torch.no_grad():
            error = (trained.inverse(trained(far)[0])[0] - far).abs().max()
        assert float(error) <= 1e-5

    def test_the_inverse_is_closer_than_its_tolerance(self, trained: Flow, far: torch.Tensor) -> None:
        """So that what is guaranteed of a block, 1e-7, does not add up over many."""
        with torch.no_grad():
            error = (trained.inverse(trained(far.double())[0])[0] - far).abs().max()
        assert float(error) <= 1e-8

    def test_no_certified_constant_reaches_one(self, trained: Flow) -> None:
        assert max(trained.lipschitz_constants()) < 1

    def test_evaluation_reports_what_it_says(self, trained: Flow) -> None:
        held_out = HeldOut.draw(Moons(), 20_000, torch.Generator().manual_seed(3), torch.device("cpu"))
        state = torch.get_rng_state()
        first, second = evaluate(trained, held_out, seed=0), evaluate(trained, held_out, seed=0)
        assert first == second
        assert torch.equal(torch.get_rng_state(), state)
        with torch.no_grad():
            nll = -trained.log_prob(held_out.x).double()
        plain_stderr = float(nll.std()) / math.sqrt(len(nll))
        assert first.nll == pytest.approx(float(nll.mean()), abs=4 * plain_stderr)
        assert first.kl == pytest.approx(first.nll - Moons().entropy)
        assert first.lipschitz == trained.lipschitz()
        with torch.no_grad():
            distance = torch.linalg.vector_norm(trained.preimage(trained(held_out.x)[0]) - held_out.x, dim=1)
        assert first.inverse_error == pytest.approx(float(distance.max()), rel=0.1)  # in passes it rounds otherwise
        assert first.inverse_error < 1e-5
        assert 0 < first.inverse_bound <= 1e-7  # of one block
        # An unbiased estimator: its mean error is within its noise.
        assert abs(first.logdet_bias) < 4 * first.logdet_std / math.sqrt(len(held_out.x))
        assert first.logdet_std > 0


def test_held_out_points_are_scored_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million at once would take gigabytes."""
    sizes, log_prob = [], Moons.log_prob
    monkeypatch.setattr(evaluation, "CHUNK", 400)
    monkeypatch.setattr(Moons, "log_prob", lambda self, x: sizes.append(len(x)) or log_prob(self, x))
    held_out = HeldOut.draw(Moons(), 1000, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert sizes[:3] == [400, 400, 200]
    torch.testing.assert_close(held_out.log_prob, log_prob(Moons(), held_out.x.double()))


@pytest.mark.parametrize("seconds", [0.1, 1.0, 5.0])
def test_the_learning_rate_of_a_run_that_time_ends_is_one_of_time(seconds: float) -> None:
    """However many steps there could be: it rises over the share of the time, and falls with the time."""
    clock = {"max_seconds": 10.0, "warmup": 0.02, "schedule": "cosine", "_seconds": lambda: seconds}
    rates = [
        Trainer._rate(SimpleNamespace(epochs=epochs, steps_per_epoch=1000, **clock), step=3) for epochs in (10, 10_000)
    ]
    expected = min(1.0, seconds / 0.2) * (1 + math.cos(math.pi * seconds / 10)) / 2
    assert rates == pytest.approx([expected, expected])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("step", [1, 5, 20, 500, 1000])
def test_the_learning_rate_of_a_run_of_steps(step: int, schedule: str) -> None:
    run = SimpleNamespace(epochs=10, steps_per_epoch=100, max_seconds=None, warmup=0.02, schedule=schedule)
    falling = (1 + math.cos(math.pi * (step - 1) / 1000)) / 2 if schedule == "cosine" else 1
    expected = min(1, step / 20) * falling
    assert Trainer._rate(run, step) == pytest.approx(expected)


LOST = {
    "gradients set to None": lambda flow: flow.zero_grad(),
    "moved": lambda flow: flow.double(),
    "frozen": lambda flow: flow.requires_grad_(False),
    "frozen in part": lambda flow: flow.bijections[1].requires_grad_(False),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_an_optimizer_that_has_lost_its_flow_is_not_silent(lose: Callable[[Flow], object]) -> None:
    learner = make_learner(Exact())
    learner.converge()
    lose(learner.flow)
    with pytest.raises(ValueError, match=r"optimizer has lost the flow|is frozen"):
        learner.converge()


def test_an_optimizer_of_another_place_is_refused() -> None:
    flow = ResidualFlow(2, Exact(), blocks=3, width=8)
    optimizer = adam(flow, lr=1e-2)
    flow.double()
    with pytest.raises(ValueError, match="the optimizer is of other tensors than the flow's"):
        Learner(flow, optimizer, clip_norm=1.0, ema_decay=0.9, power_iterations=1)


def test_what_a_flow_counts_by_itself_is_of_the_average_too() -> None:
    """As the running mean of a batch normalization."""
    learner = make_learner(Exact())
    learner.flow.bijections[0].register_buffer("seen", torch.zeros(()))
    learner.average.bijections[0].register_buffer("seen", torch.zeros(()))
    learner.flow.bijections[0].seen += 7
    learner.converge()
    assert learner.average.bijections[0].seen == 7
