"""Advice on what to try next: stated rules on the measurements of a run.

Each rule is a function of the facts that yields advice, or nothing. Advice is a hint at what is
worth an experiment, not a proof; it contains its numbers and the threshold of its rule.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mmoe_jax.evaluation import metrics as metrics_lib
from mmoe_jax.evaluation.gate_statistics import PREFIX
from mmoe_jax.html_report import numbers
from mmoe_jax.html_report.facts import RunFacts, main_metric

GAP = 0.01  # Of a main metric, train minus test, that counts as overfitting.
NO_GAP = 0.003  # Of a main metric: below it, the model may be too small.
EARLY = 1 / 3  # A best epoch in this part of all epochs is early.
UNIFORM = 0.98  # A gate is nearly uniform above this part of the largest entropy.
MISCALIBRATED = 0.05  # Distance of predicted / observed from 1.
FEW = 200  # Positive or negative test rows, below which intervals are wide.
LEAK = 0.15  # Of AUC, lost by one permuted column, that may be too good to be true.
LEAK_FACTOR = 4  # Times the next column's loss.
IDLE = 1e-4  # A column matters if permuting it changes some metric by more.
UNKNOWN_COST = 0.02  # Of a main metric.
MEAN_GAIN = 0.0005  # Of a main metric: below it, a mean of members hardly pays.


class Advice(NamedTuple):
  """Advice: a heading, its reason with numbers, and the rule that gave it."""

  title: str
  reason: str
  rule: str


def advise(facts: RunFacts) -> list[Advice]:
  """Returns the advice of all rules that apply, the most consequential first."""
  return [advice for rule in RULES for advice in rule(facts)]


def _train_longer(facts: RunFacts) -> Iterator[Advice]:
  if all(best == epochs for best, epochs in facts.best_epochs):
    key, epochs = "config.train.epochs", max(epochs for _, epochs in facts.best_epochs)
    first = "The best epoch of every member" if facts.is_mean else f"The best epoch, {epochs},"
    yield Advice(
      "Train longer",
      f"{first} is the last one: validation still improved when training ended. Try "
      f"`--{key}={max(2 * epochs, epochs + 3)}` in another work directory.",
      "The best epoch is the last epoch, of a mean that of every member.",
    )


def _learn_slower(facts: RunFacts) -> Iterator[Advice]:
  if all(epochs >= 6 and best <= EARLY * epochs for best, epochs in facts.best_epochs):
    found = [f"{best} of {epochs}" for best, epochs in dict.fromkeys(facts.best_epochs)]
    yield Advice(
      "Lower the learning rate, or regularise",
      f"The best epoch is {numbers.sentence(found)}; after it validation became worse. Try a lower "
      "`--config.optimizer.dense.learning_rate`, or more dropout.",
      f"At least 6 epochs, and the best one in the first third ({numbers.percent(EARLY, 0)}), of a "
      "mean that of every member.",
    )


def _no_better_than_chance(facts: RunFacts) -> Iterator[Advice]:
  for task in facts.tasks:
    metric = main_metric(task)
    found = facts.intervals.get(task.name, {}).get(metric)
    chance = {"auc": 0.5, "r2": 0.0}.get(metric)
    if found and chance is not None and found.low <= chance:
      yield Advice(
        f"The scores of {task.name} are not better than chance",
        f"Its {numbers.metric_name(metric)} on test rows is {numbers.text(found.value)} (95 % "
        f"interval {numbers.interval(found.low, found.high)}), where {chance:g} needs no model. "
        "Train longer, or look for columns that say something about this task.",
        "The test interval of AUC reaches down to 0.5, or that of R² down to 0.",
      )


def _overfitting(facts: RunFacts) -> Iterator[Advice]:
  found = []
  for task in facts.tasks:
    gap = _gap(facts, task)
    interval = facts.intervals.get(task.name, {}).get(main_metric(task))
    noise = (interval.high - interval.low) / 2 if interval else 0.0
    if gap is not None and gap > max(GAP, noise):
      metric = numbers.metric_name(main_metric(task))
      found.append(f"{task.name} by {numbers.text(gap)} ({metric})")
  if found:
    yield Advice(
      "Overfitting",
      f"Train rows are better than test rows: {numbers.sentence(found)}. Try more dropout "
      "(`--config.model.tower_dropout` and the other rates there), "
      "`--config.optimizer.dense.weight_decay`, or a smaller model.",
      f"Train minus test in the main metric is above {GAP}, and above half the width of the test "
      "interval.",
    )


def _underfitting(facts: RunFacts) -> Iterator[Advice]:
  gaps = [_gap(facts, task) for task in facts.tasks]
  if all(gap is not None and gap < NO_GAP for gap in gaps):
    largest = max(gap for gap in gaps if gap is not None)
    yield Advice(
      "A larger model may help",
      f"No task is more than {numbers.text(max(largest, 0.0))} better on train rows than on test "
      "rows, so the model does not overfit yet. Try more or wider experts (or bottoms), wider "
      "embeddings, or crosses of columns; `python -m mmoe_jax.tune` compares such settings.",
      f"Train minus test below {NO_GAP} in the main metric of every task.",
    )


def _gap(facts: RunFacts, task: object) -> float | None:
  """Returns how much better a task's main metric is on train rows than on test rows."""
  metric = main_metric(task)
  name = f"{task.name}/{metric}"
  train, test = (facts.results.get(split, {}).get(name) for split in ("train", "test"))
  if train is None or test is None:
    return None
  return test - train if metric in metrics_lib.LOWER_IS_BETTER else train - test


def _collapsed_gates(facts: RunFacts) -> Iterator[Advice]:
  for line in facts.gates["warnings"] if facts.gates else ():
    yield Advice(
      "A collapsed gate",
      f"On test rows, {line}. Try `--config.model.gate_dropout=0.1` (of mmoe), another seed, or "
      "fewer experts.",
      "The warnings of mmoe_jax.gate_report: one expert has over 95 % of a gate's weight, or all "
      "gates overlap by at least 0.99.",
    )


def _collapsed_gates_of_members(facts: RunFacts) -> Iterator[Advice]:
  found = [str(each["member"]) for each in facts.gates_of_members if each["warnings"]]
  if found:
    yield Advice(
      f"Collapsed gates in {len(found)} of {len(facts.gates_of_members)} members",
      f"On test rows, gates of the members {numbers.sentence(found)} collapsed; the section on "
      "gates says how. Try `--config.model.gate_dropout=0.1` (of mmoe), or fewer experts.",
      "The warnings of mmoe_jax.gate_report for each member.",
    )


def _uniform_gates(facts: RunFacts) -> Iterator[Advice]:
  if not facts.gates or facts.gates["experts"] < 2:
    return
  largest = math.log(facts.gates["experts"])
  shares = [facts.gates["all"][f"{PREFIX}{t}/entropy"] / largest for t in facts.gates["tasks"]]
  if min(shares) > UNIFORM:
    yield Advice(
      "The gates hardly choose",
      f"Every gate is nearly uniform in each row (at least {numbers.percent(min(shares))} of the "
      "largest entropy): the experts are averaged. Compare with the model `shared_bottom`, which "
      "is simpler, or try fewer experts and a higher learning rate.",
      f"Entropy of every task's gate above {numbers.percent(UNIFORM, 0)} of the largest.",
    )


def _idle_experts(facts: RunFacts) -> Iterator[Advice]:
  if not facts.gates:
    return
  experts, tasks = facts.gates["experts"], facts.gates["tasks"]
  bound = facts.gates["thresholds"]["in_use"]
  mean = lambda task, e: facts.gates["all"][f"{PREFIX}{task}/expert_{e}"]
  idle = [e for e in range(experts) if all(mean(task, e) < bound for task in tasks)]
  if idle:
    yield Advice(
      f"Hardly used: {len(idle)} of {experts} experts",
      f"Expert {numbers.sentence(list(map(str, idle)))}: no task gives it a mean weight above "
      f"{bound:.3g}. Fewer experts would do, or `--config.model.gate_dropout` could spread the "
      "load.",
      "No task's mean weight of an expert is above a tenth of an even share.",
    )


def _calibration(facts: RunFacts) -> Iterator[Advice]:
  for task in facts.tasks:
    found = facts.intervals.get(task.name, {}).get("pcoc")
    if found and abs(found.value - 1) > MISCALIBRATED and not found.low <= 1 <= found.high:
      side = "too high" if found.value > 1 else "too low"
      yield Advice(
        f"Probabilities of {task.name} are {side}",
        f"Predicted over observed positives is {numbers.text(found.value, 3)} on test rows (95 % "
        f"interval {numbers.interval(found.low, found.high, 3)}). Check whether test rows have "
        "another share of positives than train rows; select epochs by "
        "`--config.select.metric=log_loss`; or recalibrate the scores.",
        f"Predicted over observed is over {MISCALIBRATED} from 1, and its interval excludes 1.",
      )


def _few_rows(facts: RunFacts) -> Iterator[Advice]:
  if facts.held_out is None:
    return
  for t, task in enumerate(facts.tasks):
    if task.kind != "binary":
      continue
    labels_N = facts.held_out.split.labels[:, t]
    rarer = int(min((labels_N == 1).sum(), (labels_N == 0).sum()))
    if rarer < FEW:
      yield Advice(
        f"Few test rows of one class of {task.name}",
        f"The rarer class has {rarer:,} test rows, so that differences between models below the "
        "width of the interval mean nothing. Use more test rows.",
        f"Fewer than {FEW} test rows of a class.",
      )


def _leak(facts: RunFacts) -> Iterator[Advice]:
  if facts.effects is None or len(facts.effects.names) < 2:
    return
  for t, task in enumerate(facts.tasks):
    if task.kind != "binary":
      continue
    order = np.argsort(-facts.effects.permuted[:, t])
    first, second = (float(facts.effects.permuted[c, t]) for c in order[:2])
    if first > LEAK and first > LEAK_FACTOR * max(second, 1e-6):
      name = facts.effects.names[order[0]]
      yield Advice(
        f"Does {name} give {task.name} away?",
        f"Without it the AUC falls by {numbers.text(first, 3)}, the next column's part is "
        f"{numbers.text(second, 3)}. If the column is only known after the label, leave it out: "
        f"`--config.data.exclude=\"('{name}',)\"`.",
        f"One column costs more than {LEAK} AUC and {LEAK_FACTOR} times the next.",
      )


def _idle_columns(facts: RunFacts) -> Iterator[Advice]:
  if facts.effects is None:
    return
  is_known_T = np.isfinite(facts.effects.permuted).all(0)  # A metric may be undefined there.
  if not is_known_T.any():
    return
  largest = np.abs(facts.effects.permuted[:, is_known_T]).max(1)
  noise = 2 * facts.effects.deviation[:, is_known_T].max(1)
  idle = [
    name
    for name, value, bound in zip(facts.effects.names, largest, noise, strict=True)
    if value < max(IDLE, bound) and value < 10 * IDLE
  ]
  if idle and len(idle) < len(facts.effects.names):
    shown = numbers.sentence(idle[:8]) + (f" and {len(idle) - 8} more" if len(idle) > 8 else "")
    yield Advice(
      f"Columns that hardly matter: {len(idle)}",
      f"Shuffling {shown} changes no task's metric by more than noise. A model without them "
      "(`--config.data.exclude`) may be as good, and simpler to serve.",
      "The mean change is below 2 standard deviations between permutations or below 0.0001, and "
      "below 0.001.",
    )


def _unknown_values(facts: RunFacts) -> Iterator[Advice]:
  if facts.effects is None:
    return
  for t, task in enumerate(facts.tasks):
    costly = [
      f"{name} ({numbers.text(float(value), 3)})"
      for name, value in zip(facts.effects.names, facts.effects.unknown[:, t], strict=True)
      if value > UNKNOWN_COST
    ]
    if costly:
      yield Advice(
        f"{task.name} needs known values",
        f"Unknown values in {numbers.sentence(costly)} cost that much of its "
        f"{numbers.metric_name(main_metric(task))}. Watch the share of unknown values in what you "
        "score; `python -m mmoe_jax.predict` counts them.",
        f"Unknown values in a column cost more than {UNKNOWN_COST} of the main metric.",
      )


def _shifted(facts: RunFacts) -> Iterator[Advice]:
  for task in facts.tasks:
    metric = main_metric(task)
    found = facts.intervals.get(task.name, {}).get(metric)
    value = facts.results.get("validation", {}).get(f"{task.name}/{metric}")
    if found is None or value is None:
      continue
    # The validation metric has an error of about the same size.
    width = 2**0.5 * (found.high - found.low) / 2
    if abs(value - found.value) > width:
      yield Advice(
        f"Validation and test rows of {task.name} differ",
        f"Its {numbers.metric_name(metric)} is {numbers.text(value)} on validation rows and "
        f"{numbers.text(found.value)} on test rows, more than chance explains. Are the splits from "
        "the same time and source?",
        "The difference exceeds √2 times half the width of the test interval.",
      )


def _one_seed(facts: RunFacts) -> Iterator[Advice]:
  if facts.member is None:
    yield Advice(
      "Repeat with other seeds before you compare",
      "This is one training. Another seed gives other numbers, which the intervals here do not "
      "cover: `python -m mmoe_jax.population --config … --seeds 8` trains eight as one program.",
      "The work directory holds a single run.",
    )


def _one_member_may_do(facts: RunFacts) -> Iterator[Advice]:
  if not facts.is_mean:
    return
  gains = {}
  for task in facts.tasks:
    metric = main_metric(task)
    name = f"{task.name}/{metric}"
    members = [facts.whole["members"][m].get("test", {}).get(name) for m in facts.predictor.members]
    mean = facts.results.get("test", {}).get(name)
    if mean is None or None in members:
      return
    gain = mean - float(np.mean(members))
    gains[task.name] = -gain if metric in metrics_lib.LOWER_IS_BETTER else gain
  if max(gains.values()) < MEAN_GAIN:
    found = [f"{numbers.change(gain)} for {task}" for task, gain in gains.items()]
    yield Advice(
      "A single member may do",
      "On test rows the main metric of the mean differs from the average of its members' by "
      f"{numbers.sentence(found)}, while it costs {len(facts.predictor.members)} times the "
      "computation of one. `--member=N` of predict, export and serve chooses a member.",
      f"The mean gains less than {MEAN_GAIN} of the main metric in every task.",
    )


def _diverged(facts: RunFacts) -> Iterator[Advice]:
  members = facts.whole.get("members", [])
  failed = [str(m) for m, member in enumerate(members) if "error" in member]
  if failed:
    yield Advice(
      f"{len(failed)} of {len(members)} members diverged",
      f"Member {numbers.sentence(failed)}: {members[int(failed[0])]['error']}",
      "The loss or an output of a member was not finite.",
    )


RULES: tuple[Callable[[RunFacts], Iterator[Advice]], ...] = (
  *(
    _diverged,
    _no_better_than_chance,
    _train_longer,
    _learn_slower,
    _leak,
    _overfitting,
    _collapsed_gates,
    _collapsed_gates_of_members,
  ),
  *(_uniform_gates, _calibration, _shifted, _few_rows, _underfitting, _idle_experts),
  *(_unknown_values, _idle_columns, _one_seed, _one_member_may_do),
)
