"""A fit finds the law that made the data, knows its range, and says how far it can be trusted."""

import pytest
import torch

from refimpl import scaling_law
from refimpl.scaling_law import KAPLAN, PowerLaw, bootstrap, fit_power_law, lower_envelope

XS = [3e3, 1e4, 3e4, 1e5, 3e5, 1e6]


def losses(law, xs=XS, noise=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [law(x) + noise * torch.randn((), generator=draw).item() for x in xs]


@pytest.mark.parametrize("floor", [0.0, 1.2, 3.0])
@pytest.mark.parametrize("alpha", [0.05, 0.076, 0.4, 1.1])
def test_a_fit_finds_the_law_that_made_the_data(floor, alpha):
    """Exponent, floor and x_c come back from exact data, and so does every loss."""
    truth = PowerLaw(floor, 2e4, alpha, XS[0], XS[-1], 0.0)
    law = fit_power_law(XS, losses(truth))
    assert law.alpha == pytest.approx(alpha, rel=1e-3)
    assert law.floor == pytest.approx(floor, abs=2e-3)
    assert [law(x) for x in XS] == pytest.approx(losses(truth), abs=1e-6)
    assert law.residual < 1e-6
    assert (law.low, law.high) == (XS[0], XS[-1])


def test_the_floor_can_be_given_and_is_never_negative():
    """Kaplan's form has floor 0; data that would want a negative floor get 0 as well."""
    truth = PowerLaw(0.0, 8.8e13, KAPLAN["parameters"], 1.0, 1.0, 0.0)
    law = fit_power_law(XS, losses(truth), floor=0.0)
    assert (law.floor, law.alpha, law.x_c) == (0.0, pytest.approx(0.076, rel=1e-4), pytest.approx(8.8e13, rel=1e-2))
    steep = [10.0 - 2 * i for i in range(4)]  # a straight line in log x: the best power law dips below zero
    assert fit_power_law([1.0, 10.0, 100.0, 1000.0], steep).floor == 0.0
    assert fit_power_law(XS, losses(PowerLaw(1.5, 1e4, 0.3, 1.0, 1.0, 0.0)), floor=1.5).alpha == pytest.approx(
        0.3, rel=1e-4
    )


def test_no_other_exponent_fits_better():
    """The residual reported is the least on a fine scan of exponents, on noisy data."""
    xs = torch.tensor(XS, dtype=torch.float64)
    noisy = torch.tensor(losses(PowerLaw(1.2, 2e4, 0.4, 1.0, 1.0, 0.0), noise=0.05), dtype=torch.float64)
    law = fit_power_law(XS, noisy.tolist())
    scanned = []
    for alpha in torch.arange(0.01, 3, 0.005).tolist():
        basis = torch.stack((torch.ones_like(xs), (xs / 1e4) ** -alpha), dim=1)
        weights = torch.linalg.lstsq(basis, noisy[:, None]).solution
        if weights.min() >= 0:
            scanned.append(((basis @ weights)[:, 0] - noisy).square().mean().sqrt().item())
    assert law.residual <= min(scanned) + 1e-9


def test_a_law_knows_its_range():
    """Inside the data it may be asked; outside it still answers, and says that it is a guess."""
    law = fit_power_law(XS, losses(PowerLaw(1.0, 1e4, 0.3, 1.0, 1.0, 0.0)))
    assert law.covers(3e3) and law.covers(5e5) and not law.covers(2e6) and not law.covers(1e3)
    assert law(1e7) < law(1e6)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """90 % intervals of the exponent: between 75 and 100 of 100 noisy data sets of ten runs."""
    truth = PowerLaw(1.2, 2e4, 0.4, 1.0, 1.0, 0.0)
    xs = [1e3 * 2.5**i for i in range(10)]
    held = 0
    for seed in range(100):
        low, high = bootstrap(xs, losses(truth, xs, noise=0.02, seed=seed), draws=200).alpha
        held += low <= truth.alpha <= high
    assert 75 <= held <= 100, held


def test_bootstrap_noise_is_as_large_as_the_noise_was_and_not_as_the_residuals(monkeypatch):
    """Six runs, three fitted numbers: residuals are too small by sqrt(1/2), so they are blown up by sqrt(2)."""
    noisy = losses(PowerLaw(1.2, 2e4, 0.4, 1.0, 1.0, 0.0), noise=0.03)
    law, dealt, fit = fit_power_law(XS, noisy), [], scaling_law._fit
    monkeypatch.setattr(scaling_law, "_fit", lambda xs, values, floor: dealt.append(values) or fit(xs, values, floor))
    bootstrap(XS, noisy, draws=500)
    noise = (dealt[-1] - torch.tensor([law(x) for x in XS])).square().mean().sqrt().item()
    assert noise == pytest.approx(2**0.5 * law.residual, rel=0.05)


def test_more_noise_widens_the_interval():
    """Ten times the noise, at least three times the width; no noise, hardly any."""
    truth = PowerLaw(1.2, 2e4, 0.4, 1.0, 1.0, 0.0)
    widths = []
    for noise in (0.0, 0.003, 0.03):
        low, high = bootstrap(XS, losses(truth, noise=noise), draws=300).alpha
        widths.append(high - low)
    assert widths[0] < 1e-3
    assert widths[2] > 3 * widths[1]


def test_too_few_runs_are_refused():
    """Two points, a repeated x, three points for an interval: nothing to judge by."""
    with pytest.raises(ValueError, match="at least 3 different x"):
        fit_power_law([1.0, 2.0], [3.0, 2.0])
    with pytest.raises(ValueError, match="at least 3 different x"):
        fit_power_law([1.0, 2.0, 2.0], [3.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="3 runs leave no residuals for 3 fitted numbers"):
        bootstrap([1.0, 2.0, 3.0], [3.0, 2.0, 1.9])
    with pytest.raises(ValueError, match="does not fall with x"):
        fit_power_law([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])


def test_the_envelope_keeps_runs_that_no_cheaper_run_beats():
    """A run with more compute and more loss is left out; ties in compute keep the better."""
    assert lower_envelope([1.0, 2.0, 3.0, 3.0, 4.0], [3.0, 3.5, 2.5, 2.4, 2.0]) == [0, 3, 4]
