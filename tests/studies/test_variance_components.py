"""Variance components against scipy, known variances and the coverage of their interval."""

import numpy as np
import pytest
import scipy.stats

from mmoe_jax.errors import UserError
from studies.variance_components import components
from tests import reference


def draw(rng, groups, repeats, between, within):
  return between * rng.normal(size=(groups, 1)) + within * rng.normal(size=(groups, repeats))


def test_p_value_is_that_of_scipy():
  values = draw(reference.fresh_rng(), 6, 5, 0.5, 1.0)
  assert components(values).p == pytest.approx(scipy.stats.f_oneway(*values).pvalue)


def test_many_groups_give_the_variances_and_a_narrow_interval():
  found = components(draw(reference.fresh_rng(), 4000, 5, 2.0, 1.0))
  assert found.between == pytest.approx(2, rel=0.08)
  assert found.within == pytest.approx(1, rel=0.05)
  assert found.share == pytest.approx(0.8, abs=0.03)
  assert found.low < found.share < found.high < found.low + 0.04


def test_the_interval_covers_the_share_at_its_level():
  rng = np.random.default_rng(0)
  found = [components(draw(rng, 6, 5, 1.0, 1.0), 0.9) for _ in range(2000)]
  covered = np.mean([f.low <= 0.5 <= f.high for f in found])
  assert covered == pytest.approx(0.9, abs=0.03)


def test_no_difference_between_groups_is_a_share_of_zero():
  found = components(np.array([[1.0, 3.0], [3.0, 1.0], [2.5, 1.5]]))
  assert (found.between, found.share, found.low) == (0, 0, 0)
  assert found.p == 1


@pytest.mark.parametrize(("shape", "message"), [((1, 5), "1 groups"), ((5, 1), "1 repeats")])
def test_too_few_values_are_refused(shape, message):
  with pytest.raises(UserError, match=message):
    components(np.zeros(shape))
