"""Functions of one member of a population, on one device.

Members differ only in their seed and in float settings, which are traced: a `Member` holds these.
Data is either each member's own or shared; both are dictionaries with disjoint keys.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmoe_jax import data
from mmoe_jax.config import override
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training.learner import Assessment, Learner, create_learner
from mmoe_jax.training.step import State, TaskLosses, fold_in

Array = jax.Array
Logits = Array | tuple[()]


class Member(NamedTuple):
  """Arrays of one member, or of all with a leading axis.

  Attributes:
    seed: uint32.
    settings: values of the config's floats that members set, by dotted key.
    data: own data: `train` (Batch) and `held_out` (EvalBatch); empty if it is shared.
  """

  seed: Any
  settings: Mapping[str, Any]
  data: Mapping[str, Any]


class MemberFunctions(NamedTuple):
  """Functions of one member.

  Attributes:
    init: (seed, settings, features) -> State before the first step.
    epoch: (state, (member, is_active), (data, epoch)) -> (state, (TaskLosses, Assessment)). An
      inactive member keeps its state, and its results are 0.
    segment: (steps, state, (member, is_active), (rows, epoch, block, first)) -> (state,
      TaskLosses): that many steps from number `first` of a block of streamed rows.
    assess: (state, (member, is_active), (data, epoch)) -> (state, Assessment).
    evaluate: ((), (member, variables), data) -> (metrics by name, ()).
    evaluate_with_logits: the same -> (metrics, logits (rows padded to chunks, O)).
  """

  init: Callable[[Array, Any, Mapping[str, Array]], State]
  epoch: Callable[[State, Any, Any], tuple[State, tuple[TaskLosses, Assessment]]]
  segment: Callable[[int, State, Any, Any], tuple[State, TaskLosses]]
  assess: Callable[[State, Any, Any], tuple[State, Assessment]]
  evaluate: Callable[[Any, Any, Any], tuple[dict[str, Array], Logits]]
  evaluate_with_logits: Callable[[Any, Any, Any], tuple[dict[str, Array], Logits]]


def create_member_functions(
  config: Any, schema: data.Schema, steps_per_epoch: int
) -> MemberFunctions:
  """Creates the functions of a member, for settings that are given when they are called.

  Args:
    config: settings that members share, validated.
    schema: features and tasks of the runs.
    steps_per_epoch: number of steps per epoch of one member.
  """

  def learner_of(settings: Mapping[str, Any]) -> Learner:
    return create_learner(override(config, settings), schema, steps_per_epoch)

  def init(seed: Array, settings: Any, features: Mapping[str, Array]) -> State:
    return learner_of(settings).init(jax.random.key(seed), features)

  def epoch(
    state: State, member_and_activity: tuple[Member, Array], shared: tuple[Any, Array]
  ) -> tuple[State, tuple[TaskLosses, Assessment]]:
    (member, is_active), (shared_data, number) = member_and_activity, shared
    learner, arrays = learner_of(member.settings), {**shared_data, **member.data}
    key = fold_in(jax.random.key(member.seed), "epoch", number)

    def train(state: State) -> tuple[State, tuple[TaskLosses, Assessment]]:
      state, losses = learner.epoch(state, arrays["train"], key)
      state, assessment = learner.assess(state, arrays["held_out"], number)
      return state, (losses, assessment)

    return _if_active(is_active, train, state)

  def segment(
    steps: int,
    state: State,
    member_and_activity: tuple[Member, Array],
    shared: tuple[Any, Array, Array, Array],
  ) -> tuple[State, TaskLosses]:
    (member, is_active), (rows, number, block, first) = member_and_activity, shared
    learner = learner_of(member.settings)
    key = fold_in(jax.random.key(member.seed), "epoch", number, block)
    return _if_active(
      is_active, lambda s: learner.epoch(s, rows, key, first=first, steps=steps), state
    )

  def assess(
    state: State, member_and_activity: tuple[Member, Array], shared: tuple[Any, Array]
  ) -> tuple[State, Assessment]:
    (member, is_active), (shared_data, number) = member_and_activity, shared
    learner = learner_of(member.settings)
    evaluate_one = lambda state: learner.assess(state, shared_data["held_out"], number)
    return _if_active(is_active, evaluate_one, state)

  def evaluate_member(
    _: Any, member_and_variables: tuple[Member, Any], shared_data: Any, with_logits: bool
  ) -> tuple[dict[str, Array], Logits]:
    member, variables = member_and_variables
    learner, arrays = learner_of(member.settings), {**shared_data, **member.data}
    held_out = arrays["held_out"]
    metrics = learner.evaluate(variables, held_out)
    predict = evaluate.make_predict(learner.model)
    return metrics, predict(variables, held_out.features) if with_logits else ()

  return MemberFunctions(
    init=init,
    epoch=epoch,
    segment=segment,
    assess=assess,
    evaluate=lambda *arguments: evaluate_member(*arguments, with_logits=False),
    evaluate_with_logits=lambda *arguments: evaluate_member(*arguments, with_logits=True),
  )


def _if_active(
  is_active: Array, train: Callable[[State], tuple[State, Any]], state: State
) -> tuple[State, Any]:
  """Returns train(state) for an active member, otherwise the state and results of 0."""
  shapes = jax.eval_shape(train, state)[1]

  def skip(state: State) -> tuple[State, Any]:
    return state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  # Under `scan`, members that have stopped cost no time.
  return jax.lax.cond(is_active, train, skip, state)
