"""Variance between groups and within them, with an exact interval of the share between.

Shape letters: G groups, R repeats of each.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from mmoe_jax.errors import require
from mmoe_jax.evaluation.statistics import LEVEL


class Components(NamedTuple):
  """Components of the variance of one-way random effects.

  Attributes:
    between: standard deviation of the groups' means; 0 if its estimate is negative.
    within: standard deviation of the repeats in a group.
    share: share of the variance that is between groups (intraclass correlation), at least 0.
    low: lower end of its interval, at least 0.
    high: upper end of its interval, at least 0.
    p: p-value of no variance between groups (F test).
  """

  between: float
  within: float
  share: float
  low: float
  high: float
  p: float


def components(values_GxR: np.ndarray, level: float = LEVEL) -> Components:
  """Estimates the components of y_gr = mean + a_g + e_gr with normal a and e.

  With the mean squares A between groups and W within them, F = A / W, the variances are W and
  (A − W) / R, and the share (F − 1) / (F + R − 1). Its interval has F / F_high and F / F_low in
  place of F, the quantiles of F's distribution at G − 1 and G (R − 1) degrees of freedom.

  Args:
    values_GxR: R values of each group.
    level: confidence level.

  References:
    Searle, Casella, McCulloch: Variance Components. Wiley, 1992.
  """
  values_GxR = np.asarray(values_GxR, np.float64)
  groups, repeats = values_GxR.shape
  require(groups > 1, f"{groups} groups: must be at least 2")
  require(repeats > 1, f"{repeats} repeats: must be at least 2")
  freedom = (groups - 1, groups * (repeats - 1))
  among = repeats * values_GxR.mean(1).var(ddof=1)
  within = values_GxR.var(1, ddof=1).mean()
  ratio = among / within
  share = lambda f: float(max(0.0, (f - 1) / (f + repeats - 1)))
  low, high = stats.f.ppf([(1 - level) / 2, (1 + level) / 2], *freedom)
  return Components(
    between=float(np.sqrt(max(0.0, (among - within) / repeats))),
    within=float(np.sqrt(within)),
    share=share(ratio),
    low=share(ratio / high),
    high=share(ratio / low),
    p=float(stats.f.sf(ratio, *freedom)),
  )
