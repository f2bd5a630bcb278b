"""Published numbers of others, each with its source."""

from typing import NamedTuple

MA_2018 = "Ma et al., KDD 2018, https://doi.org/10.1145/3219819.3220007"
TANG_2020 = "Tang et al. (PLE), RecSys 2020, https://doi.org/10.1145/3383313.3412236"


class Auc(NamedTuple):
  """Test AUC of a method on a task: best run, and mean of 400 trainings."""

  best: float
  mean: float


# Ma et al. 2018, tables 1 and 2: group -> method -> (its first task, its second task).
CENSUS: dict[str, dict[str, tuple[Auc, Auc]]] = {
  "group1": {
    "single_task": (Auc(0.9398, 0.9337), Auc(0.9933, 0.9922)),
    "shared_bottom": (Auc(0.9361, 0.9295), Auc(0.9915, 0.9921)),
    "l2_constrained": (Auc(0.9389, 0.9359), Auc(0.9922, 0.9918)),
    "cross_stitch": (Auc(0.9406, 0.9361), Auc(0.9917, 0.9922)),
    "tensor_factorization": (Auc(0.7460, 0.6765), Auc(0.8175, 0.8412)),
    "omoe": (Auc(0.9387, 0.9319), Auc(0.9928, 0.9923)),
    "mmoe": (Auc(0.9410, 0.9359), Auc(0.9926, 0.9927)),
  },
  "group2": {
    "single_task": (Auc(0.8843, 0.8792), Auc(0.9933, 0.9922)),
    "shared_bottom": (Auc(0.8836, 0.8813), Auc(0.9927, 0.9917)),
    "l2_constrained": (Auc(0.8855, 0.8823), Auc(0.9923, 0.9918)),
    "cross_stitch": (Auc(0.8855, 0.8819), Auc(0.9919, 0.9921)),
    "tensor_factorization": (Auc(0.7367, 0.7256), Auc(0.7453, 0.7497)),
    "omoe": (Auc(0.8852, 0.8813), Auc(0.9915, 0.9912)),
    "mmoe": (Auc(0.8860, 0.8826), Auc(0.9932, 0.9924)),
  },
}


class Other(NamedTuple):
  """Test AUCs of another source for income_50k and marital_stat, and its setting."""

  source: str
  method: str
  income_50k: float
  marital_stat: float
  setting: str


_RECHUB = "embedding 4, 8 experts of 16 with batch norm, batch 1024; another, unseeded split"
_PADDLE = "8 experts of 16, towers of 8, batch 32, 400 epochs"
OTHER_CENSUS: tuple[Other, ...] = (
  Other(TANG_2020, "single_task", 0.9445, 0.9923, "the set-up of Ma et al. 2018"),
  Other(TANG_2020, "mmoe", 0.9393, 0.9928, "the set-up of Ma et al. 2018"),
  Other(TANG_2020, "ple", 0.9522, 0.9945, "the set-up of Ma et al. 2018"),
  Other("PaddleRec", "mmoe", 0.9494, 0.9942, f"largest; {_PADDLE}"),
  Other("PaddleRec", "mmoe", 0.9447, 0.9932, f"mean; {_PADDLE}"),
  Other("torch-rechub", "shared_bottom", 0.9560, 0.9948, _RECHUB),
  Other("torch-rechub", "mmoe", 0.9579, 0.9950, _RECHUB),
  Other("torch-rechub", "ple", 0.9593, 0.9950, _RECHUB),
  Other("torch-rechub", "aitm", 0.9595, 0.9951, _RECHUB),
  Other("MMoEEx, issue 2", "mmoe", 0.906, 0.9645, "a user who could not reproduce the paper"),
  Other("MetaSpore, Census demo", "mmoe", 0.8627, 0.9823, "100 epochs; only embeddings trained"),
)

# Ma et al. 2018, figure 2, read by eye: cosine of the tasks' weights -> Pearson correlation of
# their labels.
LABEL_CORRELATION: dict[float, float] = {0.5: 0.08, 0.7: 0.14, 0.9: 0.31, 0.98: 0.66, 1.0: 1.0}

# Figure 4, read by eye: correlation -> model -> loss at the end of the mean curve.
SYNTHETIC_LOSS: dict[float, dict[str, float]] = {
  0.5: {"shared_bottom": 0.255, "omoe": 0.145, "mmoe": 0.08},
  0.9: {"shared_bottom": 0.22, "omoe": 0.12, "mmoe": 0.08},
  1.0: {"shared_bottom": 0.20, "omoe": 0.077, "mmoe": 0.07},
}

# Figure 5 in words: what the histograms of the final loss over 200 runs show.
SYNTHETIC_SPREAD: dict[str, str] = {
  "shared_bottom": "wide and with two humps at every correlation",
  "omoe": "tight at correlation 1, worse at 0.5",
  "mmoe": "tight near 0.05 at every correlation",
}
