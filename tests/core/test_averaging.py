"""Many example pairs: averages, spread and outliers."""

import pytest
import torch

from lorweb_core.averaging import average_analogies
from lorweb_core.basis import Basis, LayerBasis
from lorweb_core.coefficients import encode_coefficients
from lorweb_core.errors import SettingsError, ShapeError
from lorweb_core.settings import RouterSettings
from tests.synthetic import make_basis

BASIS = make_basis()


def queries(count, *, mixes=2, noise=0.05):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(mixes, 18, generator=generator)
    return [common + noise * torch.randn(mixes, 18, generator=generator) for _ in range(count)]


def names(count):
    return [f"pair {index}" for index in range(count)]


def test_averaged_coefficients_are_the_mean_of_each_pairs_own():
    given = queries(3)
    averaged, _ = average_analogies(BASIS, given, names=names(3))
    singles = [encode_coefficients(BASIS, query)["layers"] for query in given]
    for name, mix in averaged["layers"].items():
        torch.testing.assert_close(mix, sum(single[name] for single in singles) / 3, atol=1e-6, rtol=1e-5)
    assert averaged["basis_id"] == BASIS.basis_id


def test_an_averaged_query_is_routed_once():
    given = queries(3)
    averaged, _ = average_analogies(BASIS, given, names=names(3), average="query")
    expected = encode_coefficients(BASIS, torch.stack(given).mean(0))
    assert all(torch.equal(mix, expected["layers"][name]) for name, mix in averaged["layers"].items())


@pytest.mark.parametrize("average", ["coefficients", "query"])
def test_equal_pairs_average_to_that_pair_and_have_no_spread(average):
    given = queries(1) * 4
    averaged, spread = average_analogies(BASIS, given, names=names(4), average=average)
    for name, mix in encode_coefficients(BASIS, given[0])["layers"].items():
        torch.testing.assert_close(averaged["layers"][name], mix, atol=1e-6, rtol=1e-6)
    assert max(spread.distances) < 1e-6 and spread.outliers == () and "No outliers" in spread.describe()


def test_a_pair_that_shows_another_edit_is_named():
    given = queries(6)
    given[4] = -given[4]
    _, spread = average_analogies(BASIS, given, names=names(6))
    assert spread.outliers == ("pair 4",)
    first_line, worst, *_ = spread.describe().splitlines()
    assert "6 pairs" in first_line and "pair 4  <- outlier" in worst


def test_a_pair_a_little_further_away_than_equal_ones_is_no_outlier():
    layer = LayerBasis(torch.ones(6, 1, 2), torch.ones(6, 2, 1), keys=torch.eye(6))
    basis = Basis({"layer": layer}, RouterSettings(query_mode="caa'"), basis_id="0")
    given = [2.0 * row[None] for row in torch.eye(6)]  # each pair uses an adapter of its own
    given[5] *= 1.2
    _, spread = average_analogies(basis, given, names=names(6))
    assert max(spread.distances) == spread.distances[5] > 1.1 * spread.distances[0] and spread.outliers == ()


def test_few_pairs_are_not_called_outliers():
    given = queries(3)
    given[1] = -given[1]
    _, spread = average_analogies(BASIS, given, names=names(3))
    assert spread.outliers == () and "from 4 pairs on" in spread.describe()
    assert "nothing to compare" in average_analogies(BASIS, queries(1), names=names(1))[1].describe()


def test_pairs_that_do_not_fit_are_refused():
    for given, count, error, words in (
        ([], 0, ShapeError, "0 example pairs.*at least one example pair"),
        ([*queries(1), *queries(1, mixes=3)], 2, ShapeError, "same images b"),
        (queries(2), 3, ShapeError, "3 names"),
    ):
        with pytest.raises(error, match=words):
            average_analogies(BASIS, given, names=names(count))
    with pytest.raises(SettingsError, match=r"'median' does not exist. Use coefficients or query"):
        average_analogies(BASIS, queries(2), names=names(2), average="median")
