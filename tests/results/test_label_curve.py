import numpy as np
import pytest

from raydelta.errors import UserError
from raydelta.results.label_curve import Advice, advise, fit_law

COUNTS = [8, 16, 32, 64]


def curve(a: float, b: float, c: float, noise: float = 0.0, seeds: int = 3) -> list[tuple[int, float]]:
    random = np.random.default_rng(1)
    return [(n, a - b * n**-c + noise * random.normal()) for n in COUNTS for _ in range(seeds)]


def test_a_law_is_found_again() -> None:
    counts = np.array(COUNTS, dtype=float)
    a, b, c = fit_law(counts, 50 - 40 * counts**-0.5)
    assert (a, b, c) == pytest.approx((50, 40, 0.5), rel=0.05)


def test_without_noise_the_advice_is_what_the_law_says() -> None:
    found = advise(curve(50, 40, 0.5), points=1.0)
    exact = (40 / (40 * 64**-0.5 - 1)) ** 2 - 64
    assert found.more == pytest.approx(exact, abs=2)
    assert found.low == found.high == found.more
    assert str(found) == f"about {found.more} more labels for +1 points, 80% interval {found.low} to {found.high}"


def test_noise_widens_the_interval_around_it() -> None:
    narrow, wide = (advise(curve(50, 40, 0.5, noise), points=0.5) for noise in (0.02, 0.2))
    for found in (narrow, wide):
        assert found.more is not None
        assert found.low is not None
        assert found.low <= found.more
        assert found.high is None or found.more <= found.high
    assert wide.high is None or wide.high - wide.low > narrow.high - narrow.low  # type: ignore[operator]


def test_nothing_is_said_beyond_twice_the_data() -> None:
    found = advise(curve(50, 40, 0.5), points=2.5)
    assert (found.more, found.low, found.high) == (None, None, None)
    assert "more than 64 labels" in str(found)
    assert advise(curve(50, 40, 0.5), points=60).more is None, "above the law's ceiling"


def test_a_curve_that_falls_promises_nothing() -> None:
    assert advise(curve(30, -10, 0.5)).more is None


def test_an_open_interval_says_so() -> None:
    assert str(Advice(2, 64, 30, 10, None)) == "about 30 more labels for +2 points, 80% interval 10 to more than 64"


@pytest.mark.parametrize(
    "measured", [[], [(8, 20.0), (8, 21.0), (16, 22.0), (16, 23.0)], [(8, 1.0), (16, 2.0), (32, 3.0)]]
)
def test_too_little_to_fit_is_refused(measured: list[tuple[int, float]]) -> None:
    with pytest.raises(UserError, match="at least 3 numbers of labels with 2 seeds each"):
        advise(measured)
