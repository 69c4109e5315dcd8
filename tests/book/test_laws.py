"""The laws in JavaScript, in headless Chromium, against Python's: each on a grid of settings, to 1e-9."""

import itertools
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from lorantk import cosine_law, information_bits, marchenko_pastur_edges, order_interval, renyi_entropy
from lorantk.audit import plan
from lorantk.spectra import marchenko_pastur_density, order_doubt

LAWS = Path(__file__).resolve().parents[2] / "book" / "_static" / "interactive" / "laws.js"
CLOSE = {"rel": 1e-9, "abs": 1e-12}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def laws(page):
    page.add_script_tag(path=LAWS)


def over(page, law, cases):
    """What the law returns for each case, a list of arguments; infinities come back as themselves."""
    return page.evaluate(f"cases => cases.map(c => laws.{law}(...c))", cases)


SETTINGS = [
    {"rank": r, "alpha": a, "width": n, "init": draw, "rslora": stable, "dimension": d}
    for n, r, a, draw, stable in itertools.product(
        (1, 64, 768, 4096), (1, 2, 8, 64, 333), (0.5, 16, 100), ("peft", "gaussian", "orthonormal"), (False, True)
    )
    for d in (1, 48, n)
    if r <= n and d <= n
]


def test_the_plan_is_that_of_the_command(page):
    settings = [
        {"stabilised": s["rslora"], "draw": s["init"]} | {k: s[k] for k in ("rank", "alpha", "width", "dimension")}
        for s in SETTINGS
    ]
    found = over(page, "plan", [[setting] for setting in settings])
    for setting, ours in zip(SETTINGS, found, strict=True):
        theirs = asdict(plan(**setting))
        for key in ("scaling", "variance", "order", "sgd", "adam", "angle"):
            assert ours[key] == pytest.approx(theirs[key], **CLOSE), (key, setting)
        assert ours["orderOnData"] == pytest.approx(theirs["order_on_data"], **CLOSE), setting
        assert ours["largestDimension"] == theirs["largest_dimension"], setting
        law = theirs["variance"], theirs["scaling"]
        assert ours["doubt"] == pytest.approx(order_doubt(setting["rank"], setting["width"], *law), **CLOSE)
        assert ours["doubtOnData"] == pytest.approx(order_doubt(setting["rank"], setting["dimension"], *law), **CLOSE)


def test_the_alpha_that_keeps_the_step_is_that_of_the_command(page):
    some = [s for s in SETTINGS if s["width"] >= 64][::7]
    cases = [
        [{"stabilised": s["rslora"], "draw": s["init"]} | {k: s[k] for k in ("rank", "alpha", "width")}, other]
        for s in some
        for other in (1, 5, 64)
    ]
    expected = [plan(**s).alpha_at(other) for s in some for other in (1, 5, 64)]
    assert np.ravel(over(page, "alphaAt", cases)) == pytest.approx(np.ravel(expected), **CLOSE)


def test_a_variance_of_ones_own_has_the_order_of_its_gaussian_draw(page):
    setting = {"rank": 8, "alpha": 16, "width": 512, "draw": "level", "level": 0.7, "dimension": 48}
    found = page.evaluate("setting => laws.plan(setting)", setting)
    assert found["orderOnData"] == pytest.approx(order_interval(8, 48, 0.7 / 512, 2.0), **CLOSE)


@pytest.mark.parametrize(("rank", "width"), [(1, 1), (1, 64), (8, 48), (100, 100), (64, 4096)])
def test_spectra_have_the_law_of_marchenko_and_pastur(page, rank, width):
    variance = 0.7 / width
    low, high = marchenko_pastur_edges(rank, width, variance)
    assert over(page, "marchenkoPasturEdges", [[rank, width, variance]])[0] == pytest.approx((low, high), **CLOSE)
    x = torch.linspace(max(low / 2, 1e-3), 1.1 * high, 31, dtype=torch.float64)
    ours = over(page, "marchenkoPasturDensity", [[point, rank, width, variance] for point in x.tolist()])
    assert ours == pytest.approx(marchenko_pastur_density(x, rank, width, variance).tolist(), **CLOSE)


def test_angles_have_the_law_of_their_rank(page):
    cosines = [-1, -0.7, 0, 0.001, 0.1, 0.5, 0.9, 0.99, 1]
    cases = [[rank, cosine] for rank in (1, 2, 3, 8, 64, 333, 1024) for cosine in cosines]
    expected = [cosine_law(*case) for case in cases]
    assert np.ravel(over(page, "cosineLaw", cases)) == pytest.approx(np.ravel(expected), **CLOSE)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_information_and_entropy_are_those_of_a_spectrum(page, scale):
    values = scale * torch.tensor([5.0, 2, 0.3, 1e-3, 1e-18], dtype=torch.float64)
    for tau in (1e-4, 1.0, 30.0):
        ours = over(page, "informationBits", [[values.tolist(), tau]])[0]
        assert ours == pytest.approx(information_bits(values, regularization=tau).item(), **CLOSE)
    cases = [[order, both] for order in (0, 0.5, 0.999999, 1, 1.0001, 2, 7, math.inf) for both in (True, False)]
    ours = page.evaluate(
        "([values, cases]) => cases.map(([order, both]) => laws.renyiEntropy(values, order, both))",
        [values.tolist(), cases],
    )
    for (order, both), found in zip(cases, ours, strict=True):
        expected = renyi_entropy(values, order, normalize=both).item()
        assert found == pytest.approx(expected, **CLOSE), (order, both)


def test_eigenvalues_of_a_tridiagonal_matrix(page):
    generator = np.random.default_rng(0)
    for size in (1, 2, 40):
        diagonal, off = generator.normal(size=size), generator.normal(size=size - 1)
        expected = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        ours = page.evaluate("([d, o]) => laws.tridiagonalEigenvalues(d, o)", [diagonal.tolist(), off.tolist()])
        assert ours == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)


def test_draws_of_a_spectrum_have_its_moments(page):
    """Trace and squared trace of A A^T over 400 draws, against their means for Gaussian entries."""
    rank, width, draws = 5, 12, 400
    found = page.evaluate(
        "([r, n, k]) => { const random = laws.uniform(1);"
        "return Array.from({length: k}, () => laws.wishartEigenvalues(r, n, 1 / n, random)) }",
        [rank, width, draws],
    )
    values = np.array(found)
    for power, mean in ((1, rank), (2, rank * (rank + width + 1) / width)):
        moments = (values**power).sum(axis=1)
        assert abs(moments.mean() - mean) < 4 * moments.std() / draws**0.5
