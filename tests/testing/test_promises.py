"""Each promise catches a part that breaks it; the contract names what it cannot check."""

import copy
import itertools

import attrs
import pytest
import torch
from hypothesis import find

import kvpolicy
from kvpolicy import errors, testing
from kvpolicy.cache.storage.offloaded import Offloaded
from kvpolicy.prefill import AShape
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.division import FairDivider
from kvpolicy.stages.selection import Selection, TopKSelector
from kvpolicy.stages.smoothing import MeanSmoother
from kvpolicy.task import Metric, Sample
from kvpolicy.testing.promises import PROMISES

COUNTER = itertools.count()


class Scorer:
    """A blameless scorer, of which every mutant changes one thing."""

    window = 4

    def score(self, observation, reduce):
        return observation.folded_attention(reduce)


class NoWindow(Scorer):
    window = 0


class OneShort(Scorer):
    def score(self, observation, reduce):
        return super().score(observation, reduce)[..., 1:]


class OwnPrecision(Scorer):
    def score(self, observation, reduce):
        return super().score(observation, reduce).to(observation.keys.dtype)


class NeedsWeights(Scorer):
    def score(self, observation, reduce):
        return observation.attention.mT @ reduce.weights(observation.window)


class ScalesQueries(Scorer):
    def score(self, observation, reduce):
        observation.queries.mul_(2)
        return super().score(observation, reduce)


class Counts(Scorer):
    def score(self, observation, reduce):
        scores = super().score(observation, reduce)
        return scores.roll(7 * next(COUNTER), -1)


class ComparesSequences(Scorer):
    def score(self, observation, reduce):
        scores = super().score(observation, reduce)
        return scores - scores.amax((0, 1), keepdim=True)


class ComparesHeads(Scorer):
    def score(self, observation, reduce):
        scores = super().score(observation, reduce)
        return scores - scores.amax((1, 2), keepdim=True)


class Forgetful(Scorer):
    def accumulate(self, observation):
        return observation.attention.sum(2)


class SumSmoother(MeanSmoother):
    def temporal(self, values):
        return values.sum(-2)


class SmallestSmoother(MeanSmoother):
    folds_by_maximum = True

    def temporal(self, values):
        return values.amin(-2)


class NewestSmoother(MeanSmoother):
    def temporal(self, values):
        return values[..., -1, :]


class DroppingSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores[..., :-1]


class RisingSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores + 0.25


class CentringSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores - scores.mean(-1, keepdim=True)


class LoudestHeadSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores.amax(1, keepdim=True).expand_as(scores)


class ClippingSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores.clamp_(max=0.5)


class HalfAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, budget) / 2


class GenerousAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, 2 * budget)


class MoodyAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, budget if budget % 2 else budget // 2)


class SortingAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        scores.copy_(scores.sort(-1, descending=True).values + 1)
        return super().allocate(scores, observation, budget)


class UnsortedSelector(TopKSelector):
    def select(self, scores, budgets):
        return Selection(indices=super().select(scores, budgets).indices.flip(-1), lengths=budgets)


class BlindSelector(TopKSelector):
    def select(self, scores, budgets):
        return super().select(scores.masked_fill(scores.isinf(), -9), budgets)


class WorstSelector(TopKSelector):
    def select(self, scores, budgets):
        return super().select(scores.where(scores.isinf(), -scores), budgets)


class MiddleSelector(TopKSelector):
    def select(self, scores, budgets):
        rolled = scores.roll(2, -1)
        kept = (super().select(rolled, budgets).indices - 2) % scores.shape[-1]
        return Selection(indices=kept.sort(-1).values, lengths=budgets)


class GreedySelector(TopKSelector):
    def select(self, scores, budgets):
        return super().select(scores, budgets.add_(1))


class NewestCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return tuple(each.flip(2) for each in super().compact(keys, values, selection, observation))


class DoubleCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return tuple(
            each.double() for each in super().compact(keys, values, selection, observation)
        )


class AddingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return super().compact(keys + 1, values, selection, observation)


class MixingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return super().compact(keys, values - values.mean(1, True), selection, observation)


class ScalingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return super().compact(keys, values.mul_(2), selection, observation)


BUFFERS = (torch.zeros(100_000), torch.zeros(100_000))


class ReusingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        kept = super().compact(keys, values, selection, observation)
        pairs = zip(BUFFERS, kept, strict=True)
        return tuple(buffer[: each.numel()].view(each.shape).copy_(each) for buffer, each in pairs)


class ForgetfulStorage(Offloaded):
    def load(self, stored):
        contents = super().load(stored)
        contents.slots.known = contents.slots.positions.int() - 1
        return contents


class WearingStorage(Offloaded):
    def store(self, contents, before):
        contents.keys.buffer.mul_(0.5)
        return super().store(contents, before)


class StaleStorage(Offloaded):
    def extend(self, stored, contents):
        pass


@attrs.define
class UnmovedContents:
    layout: object
    row_nbytes = 1
    nbytes = 1

    def select_rows(self, batch):
        pass

    def forget_last(self, count):
        pass


class UnmovedStorage(Offloaded):
    form = UnmovedContents

    def store(self, contents, before):
        return UnmovedContents(contents)

    def load(self, stored):
        return copy.deepcopy(stored.layout)


class FloatPattern(AShape):
    def choose(self, queries, keys, **how):
        return super().choose(queries, keys, **how).float()


class ChangingPattern(AShape):
    def choose(self, queries, keys, **how):
        keys.add_(1)
        return super().choose(queries, keys, **how)


class MinglingPattern(AShape):
    def choose(self, queries, keys, **how):
        chosen = super().choose(queries, keys, **how).expand(len(keys), -1, -1, -1)
        return chosen & (keys.mean() > keys.mean((1, 2, 3), keepdim=True))


class HastyPattern(AShape):
    dense_up_to = 10_000


class LeavingDivider(FairDivider):
    def divide(self, lengths):
        return {name: length for name, length in lengths.items() if length}


class WritingDivider(FairDivider):
    def divide(self, lengths):
        lengths["more"] = 1
        return {name: 1.0 for name in lengths if name != "more"}


class ForgetfulDivider(FairDivider):
    """Divides otherwise where it is asked by a layer than where it is asked again."""

    asked = 0

    def divide(self, lengths):
        ForgetfulDivider.asked += 1
        return {name: float(at == ForgetfulDivider.asked % 3) for at, name in enumerate(lengths)}


class Question:
    """A blameless task, of which every mutant changes one thing."""

    metric = Metric(name="same", judge=lambda text, sample: text in sample.answers)

    def samples(self, tokenizer):
        return [Sample(name=name, context="red or blue?", answers=("red",)) for name in "ab"]


class Unsteady(Question):
    def samples(self, tokenizer):
        return [Sample(name=str(next(COUNTER)), context="red?", answers=("red",))]


class Nameless(Question):
    def samples(self, tokenizer):
        return [attrs.evolve(sample, name="a") for sample in super().samples(tokenizer)]


class Indifferent(Question):
    metric = Metric(name="any", judge=lambda text, sample: 1.0)


FAULTY = {
    "scorer": {
        "asks_for_a_window_that_can_be": NoWindow(),
        "scores_every_position": OneShort(),
        "takes_every_precision": OwnPrecision(),
        "takes_a_fold_without_weights": NeedsWeights(),
        "leaves_the_observation_alone": ScalesQueries(),
        "scores_the_same_twice": Counts(),
        "scores_a_sequence_as_if_alone": ComparesSequences(),
        "scores_heads_of_several_processes": ComparesHeads(),
        "runs_on_from_its_state": Forgetful(),
    },
    "smoother": {
        "folds_what_agrees_to_itself": SumSmoother(),
        "folds_with_its_weights": NewestSmoother(),
        "folds_by_the_maximum_it_names": SmallestSmoother(),
        "keeps_the_shape": DroppingSmoother(),
        "keeps_constants_away_from_the_edges": RisingSmoother(),
        "keeps_what_is_not_negative": CentringSmoother(),
        "spreads_heads_of_several_processes": LoudestHeadSmoother(),
        "leaves_its_inputs_alone": ClippingSmoother(),
    },
    "allocator": {
        "allocates_what_there_is": HalfAllocator(),
        "keeps_to_the_budget": GenerousAllocator(),
        "takes_nothing_away_when_the_budget_grows": MoodyAllocator(),
        "leaves_its_inputs_alone": SortingAllocator(),
    },
    "selector": {
        "keeps_exactly_the_budget": UnsortedSelector(),
        "keeps_what_is_protected": BlindSelector(),
        "keeps_the_best": WorstSelector(),
        "breaks_ties_to_one_side": MiddleSelector(),
        "leaves_its_inputs_alone": GreedySelector(),
    },
    "compactor": {
        "changes_nothing_in_a_full_selection": AddingCompactor(),
        "writes_a_row_for_each_that_is_kept": DoubleCompactor(),
        "builds_each_row_on_the_one_that_is_kept": NewestCompactor(),
        "compacts_heads_of_several_processes": MixingCompactor(),
        "gives_away_what_it_returns": ReusingCompactor(),
        "leaves_its_inputs_alone": ScalingCompactor(),
    },
    "storage": {
        "loads_the_tokens_that_were_stored": ForgetfulStorage(),
        "loses_nothing_more_when_it_stores_again": WearingStorage(),
        "adds_new_rows_and_leaves_the_others": StaleStorage(),
        "moves_kept_rows_as_they_are": WearingStorage(),
        "follows_the_rows_of_the_batch": UnmovedStorage(),
        "forgets_the_last_tokens": UnmovedStorage(),
        "says_what_goes_into_a_file": UnmovedStorage(),
    },
    "prefill_pattern": {
        "chooses_blocks_for_every_head": FloatPattern(sinks=4, local=8, block=4),
        "chooses_the_same_twice": ChangingPattern(sinks=4, local=8, block=4),
        "chooses_for_each_row_as_if_alone": MinglingPattern(sinks=4, local=8, block=4),
        "leaves_nothing_out_of_a_short_prompt": HastyPattern(sinks=4, local=8, block=64),
    },
    "divider": {
        "gives_each_span_a_part": LeavingDivider(),
        "divides_the_same_twice": WritingDivider(),
        "keeps_each_span_within_one_position_of_its_part": ForgetfulDivider(),
    },
    "recipe": {
        "survives_a_trip_through_json": {"scorer": Scorer()},
        "generates_within_the_budget": {"scorer": "snapkv", "allocator": GenerousAllocator()},
        "keeps_two_conversations_apart": {"scorer": Counts()},
        "reads_a_padded_row_as_if_alone": {"scorer": Counts()},
    },
    "task": {
        "gives_the_same_samples_twice": Unsteady(),
        "names_its_samples": Nameless(),
        "judges_an_answer_above_an_empty_text": Indifferent(),
    },
}
BLAMELESS = {
    "scorer": Scorer(),
    "smoother": MeanSmoother(),
    "allocator": UniformAllocator(),
    "selector": TopKSelector(),
    "compactor": GatherCompactor(),
    "storage": Offloaded(),
    "prefill_pattern": AShape(sinks=4, local=8, block=4),
    "divider": FairDivider(),
    "recipe": {"scorer": "snapkv"},
    "task": Question(),
}


@pytest.mark.parametrize(
    ("promise", "faulty"),
    [
        pytest.param(promise, FAULTY[kind].get(promise.name), id=f"{kind}-{promise.name}")
        for kind, promises in PROMISES.items()
        for promise in promises
    ],
)
def test_a_promise_catches_a_part_that_breaks_it(promise, faulty):
    with pytest.raises((AssertionError, AttributeError, errors.KvpolicyError)):
        promise(faulty)


@pytest.mark.parametrize("kind", BLAMELESS)
def test_a_blameless_part_keeps_every_promise(kind):
    testing.check(kind, BLAMELESS[kind])


def test_check_names_the_promise_that_is_broken():
    with pytest.raises(AssertionError) as caught:
        testing.check("selector", WorstSelector())
    assert "breaks the promise 'keeps_the_best'" in caught.value.__notes__[-1]


def test_the_contract_has_one_case_for_each_promise():
    [mark] = kvpolicy.testing.contract(plugin="snapkv").pytestmark
    ids = [case.id for case in mark.args[1]]
    assert "scorer-snapkv-scores_every_position" in ids
    assert len(ids) == len(set(ids))
    assert sum(each.startswith("recipe-snapkv-") for each in ids) == len(PROMISES["recipe"])


def test_a_contract_for_no_plugin_is_refused():
    with pytest.raises(errors.UnknownComponentError, match=r"'snapvk' is .* mean 'snapkv'"):
        testing.contract(plugin="snapvk")


def test_a_contract_for_a_broken_plugin_says_why(install_plugin):
    install_plugin("faulty", "import not_there_at_all")
    with (
        pytest.warns(errors.BrokenPluginWarning),
        pytest.raises(errors.InvalidComponentError, match="not_there_at_all"),
    ):
        testing.contract(plugin="faulty")


def test_a_contract_builds_parts_with_the_options_that_it_is_given(install_plugin):
    install_plugin(
        "needy",
        """
        import attrs, kvpolicy
        from kvpolicy.stages.selection import TopKSelector

        @attrs.frozen(kw_only=True)
        class NeedySelector(TopKSelector):
            path: str

        @kvpolicy.hookimpl
        def kvpolicy_selectors():
            return {"needy": NeedySelector}
        """,
    )
    test = testing.contract(plugin="needy", options={"needy": {"path": "here"}})
    component, promise = test.pytestmark[0].args[1][0].values
    test(component, promise)
    with pytest.raises(errors.InvalidOptionError, match="needs the option 'path'"):
        testing.contract(plugin="needy")(component, promise)


def test_observations_cover_what_a_scorer_may_meet():
    cases = [
        lambda layer: layer.seen > layer.length,
        lambda layer: layer.window == layer.length > 1,
        lambda layer: layer.values.shape[-1] != layer.keys.shape[-1],
        lambda layer: layer.queries.shape[1] > layer.keys.shape[1] > 1,
        lambda layer: layer.attention.amax() > 0.999 and layer.length > 8,
    ]
    for case in cases:
        find(testing.observations(), case)


def test_observations_hold_ascending_positions_that_end_with_the_window():
    layer = find(testing.observations(), lambda layer: layer.seen > layer.length > layer.window > 1)
    assert (layer.positions.diff(dim=-1) > 0).all()
    recent = torch.arange(layer.seen - layer.window, layer.seen)
    assert (layer.positions[..., -layer.window :] == recent).all()


@pytest.mark.parametrize("family", testing.FAMILIES)
def test_a_tiny_model_of_each_family_predicts(family):
    attention = "eager" if family == "gemma2" else "sdpa"
    model = testing.tiny_model(family, attn_implementation=attention)
    logits = model(torch.arange(1, 40)[None]).logits
    assert logits.shape == (1, 39, 128)
    assert logits.isfinite().all()
    assert logits.std() > 0.1


def test_a_tiny_model_is_the_same_each_time_and_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    first, second = (testing.tiny_model("llama", seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_an_unknown_family_gets_the_families_there_are():
    with pytest.raises(errors.InvalidValueError, match="Did you mean 'llama'"):
        testing.tiny_model("lama")


def test_a_sample_is_made_of_its_arguments():
    one, same = testing.observation(seed=1), testing.observation(seed=1)
    assert torch.equal(one.keys, same.keys)
    assert not torch.equal(one.keys, testing.observation(seed=2).keys)
    assert testing.observation(layer=3, num_layers=4).layer == 3
    assert attrs.fields_dict(type(one)).keys() >= {"queries", "keys", "values"}
