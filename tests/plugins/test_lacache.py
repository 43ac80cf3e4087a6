import re
from collections import Counter
from itertools import accumulate, pairwise

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.usages import OF_PLAIN_DATA, USAGES, small_policy, tokens
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_lacache import Ladder, LadderAllocator, LadderScorer, Planner
from kvpolicy_lacache.noting import known_cursors

test_contract = contract(plugin="lacache")


def setting(case):
    """A case's planner and number of layers; its budget includes the authors' compensation."""
    params = case.params
    layers = params["num_layers"]
    ladder = Ladder(layers=layers, span=params["span"], overlap=params["overlap"])
    budget = params["cache_size"] + ladder.drops // 2
    return Planner(ladder=ladder, budget=budget, start=params["start_size"]), layers


def appended(case):
    """How many tokens come before each call: "[8]+[1]*2" is 8, 1, 1."""
    found = re.findall(r"\[(\d+)\](?:\*(\d+))?", case.params["appended_chunks"])
    return [int(size) for size, times in found for _ in range(int(times or 1))]


def calls(planner, layer, chunks):
    """Append tokens to a layer in chunks, and plan after each; return all lengths and cursors."""
    cursor, held, course = planner.start, torch.empty(0, dtype=torch.long), []
    for first, last in pairwise(accumulate([0, *chunks])):
        held = torch.cat([held, torch.arange(first, last)])
        plan = planner.plan(cursor, length=len(held), layer=layer)
        cursor, held = plan.cursor, held[plan.rows]
        course.append((len(held), cursor))
    return held, course


@pytest.mark.golden("lacache")
def test_every_call_keeps_what_the_authors_code_keeps(case):
    planner, layers = setting(case)
    arrays = [case.array(name).tolist() for name in ("len_after_call", "cursor_after_call")]
    for layer in range(layers):
        held, course = calls(planner, layer, appended(case))

        assert course == list(zip(*arrays, strict=True))
        assert torch.equal(held, case.array("final_kept_by_layer")[layer].long())


@pytest.mark.golden("lacache")
def test_the_authors_compensation_is_a_larger_budget_from_the_start(case):
    planner, _ = setting(case)
    sizes = case.array("cache_size_after_call")
    assert sizes[0] in (planner.budget, case.params["cache_size"])
    assert sizes[-1] == planner.budget


def decoded(policy, layer, layers, chunks):
    """Read tokens in chunks through a policy, as a cache does; yield what the layer holds."""
    held, state = torch.empty(1, 1, 0, dtype=torch.long), None
    for first, last in pairwise(accumulate([0, *chunks])):
        new = last - first
        held = torch.cat([held, torch.arange(first, last).expand(1, 1, -1)], -1)
        if state is not None:
            state = torch.nn.functional.pad(state, (0, 0, 0, new))
        keys = torch.zeros(1, 1, held.shape[-1], 2)
        shown = kvpolicy.Observation(
            queries=keys[:, :, -new:],
            keys=keys,
            values=keys,
            positions=held,
            seen=last,
            budget=policy.budget,
            layer=layer,
            num_layers=layers,
            state=state,
        )
        shown = attrs.evolve(shown, state=policy.accumulate(shown))
        kept = selected(policy, shown).indices
        held, state = held.gather(-1, kept), shown.state[:, :, kept[0, 0]]
        yield held[0, 0]


@pytest.mark.golden("lacache")
def test_a_policy_keeps_what_the_authors_code_keeps_step_by_step(case):
    planner, layers = setting(case)
    names = ("span", "overlap")
    scorer = {"name": "lacache", "start": planner.start} | {n: case.params[n] for n in names}
    policy = kvpolicy.recipe("lacache", scorer=scorer, budget=planner.budget)
    layer = layers // 2 + 1

    steps = list(decoded(policy, layer, layers, appended(case)))

    assert [len(held) for held in steps] == case.array("len_after_call").tolist()
    assert torch.equal(steps[-1], case.array("final_kept_by_layer")[layer].long())


def listed(planner, cursor, length, layer):
    """The authors' list of rows for one call, by the formulas, with its repetitions."""
    ladder, capacity, start = planner.ladder, planner.budget, planner.start
    b, k, r = ladder.group, ladder.teeth, ladder.drops
    excess = length - capacity
    room = capacity - cursor - ladder.layers
    if excess <= room // k * r:
        groups = -(-excess // r)
        return teeth(range(length), cursor, groups, b, k, 1, layer % (r + 1))
    groups = room // k
    rows = teeth(range(length), cursor, groups, b, k, 1, layer % (r + 1))
    excess -= groups * r
    gap = -(-excess // ((capacity - start - ladder.layers) // k * r))
    size = b + (gap - 1) * (b - 1)
    groups = -(-excess // (size - k))
    return teeth(rows, start, groups, size, k, gap, layer % (size - k + 1))


def teeth(rows, first, groups, size, count, gap, offset):
    chosen = [first + size * j + offset + gap * q for j in range(groups) for q in range(count)]
    return [rows[i] for i in [*range(first), *chosen, *range(first + size * groups, len(rows))]]


@pytest.mark.parametrize(
    ("layers", "span", "overlap", "budget", "start", "length", "repeating"),
    [
        (32, 16, 0, 2048, 128, 4096, 0),
        (28, 14, 0, 4096, 64, 8192, 0),
        (24, 9, 7, 2048, 128, 8192, 7),
        (32, 9, 3, 1024, 128, 4096, 4),
        (32, 16, 8, 1024, 128, 8192, 15),
    ],
)
def test_a_prompt_leaves_the_rows_of_the_authors_list_or_as_many(
    layers, span, overlap, budget, start, length, repeating
):
    ladder = Ladder(layers=layers, span=span, overlap=overlap)
    fitting = Planner(ladder=ladder, budget=budget, start=start)
    authors, repeated = attrs.evolve(fitting, groups="authors"), 0
    for layer in range(layers):
        expected = listed(fitting, start, length, layer)
        rows = fitting.plan(start, length=length, layer=layer).rows.tolist()

        assert authors.plan(start, length=length, layer=layer).rows.tolist() == expected
        assert len(rows) == len(expected)
        assert rows == sorted(set(rows))
        if ladder.teeth == 1:
            assert rows == expected
        repeated += len(expected) > len(set(expected))

    assert repeated == repeating, "layers for which the list has a row twice"


@pytest.mark.parametrize("layers", [2, 3, 8, 31])
@pytest.mark.parametrize("budget", [4, 40, 64, 300])
@pytest.mark.parametrize("length", [5, 65, 90, 1_000, 100_000])
def test_any_prompt_is_brought_within_any_budget(length, budget, layers):
    for span, overlap in {(1, 0), (2, 1), (max(1, layers // 2), 0), (layers - 1, 0)}:
        planner = LadderScorer(span=span, overlap=overlap).planner(layers, budget)
        has_ladder = budget > layers + planner.ladder.teeth and planner.ladder.drops
        lengths = set()
        for layer in range(layers):
            rows = planner.plan(planner.start, length=length, layer=layer).rows
            lengths.add(len(rows))
            assert (rows.diff() > 0).all()
            assert torch.equal(rows[: planner.start], torch.arange(min(planner.start, length)))
            recent = min(length, layers - planner.ladder.drops + 1 if has_ladder else 1)
            assert torch.equal(rows[-recent:], torch.arange(length - recent, length))
        (held,) = lengths
        assert held <= min(budget, length)


def test_neighbouring_layers_keep_different_rows_and_all_of_them_together_keep_each():
    planner = Planner(ladder=Ladder(layers=8, span=4), budget=60, start=4)
    even, odd = (planner.plan(4, length=80, layer=layer).rows.tolist() for layer in (0, 1))
    assert even[:8] == [0, 1, 2, 3, 4, 6, 8, 10]
    assert odd[:8] == [0, 1, 2, 3, 5, 7, 9, 11]
    assert sorted({*even, *odd}) == list(range(80))


@pytest.mark.parametrize(
    ("length", "budget", "start", "kept"), [(4096, 2048, 128, 3776), (131_072, 1024, 4, 30_784)]
)
def test_all_layers_together_keep_as_much_as_the_readme_says(length, budget, start, kept):
    planner = Planner(ladder=Ladder(layers=32, span=16), budget=budget, start=start)
    plans = (planner.plan(start, length=length, layer=layer).rows for layer in range(32))
    assert len(torch.cat(list(plans)).unique()) == kept


def test_rows_of_a_batch_have_cursors_of_their_own():
    scorer = LadderScorer()
    sample = observation(positions=25, batch=2, budget=24, num_layers=4)
    marks = torch.zeros(2, 4, 25, 2)
    marks[0, :, :6] = marks[1, :, :9] = 1
    state = scorer.accumulate(attrs.evolve(sample, state=marks))
    for row in range(2):
        alone = attrs.evolve(sample.row(row), state=marks[row : row + 1])
        assert torch.equal(state[row : row + 1], scorer.accumulate(alone))
    assert not torch.equal(state[0], state[1])


def test_a_plan_that_is_not_carried_out_is_made_anew():
    scorer = LadderScorer(start=2)
    layer = observation(positions=10, budget=8, num_layers=4)
    first = scorer.accumulate(layer)
    assert (first[..., 1] < 0).sum() > 0

    grown = observation(positions=13, budget=8, num_layers=4)
    padded = torch.nn.functional.pad(first, (0, 0, 0, 3))
    again = scorer.accumulate(attrs.evolve(grown, state=padded))

    assert torch.equal(again, scorer.accumulate(grown))


@pytest.mark.parametrize("every", [1, 3])
def test_a_model_holds_the_plan_of_every_layer(every):
    model = tiny_model("llama", num_hidden_layers=4)
    policy = kvpolicy.recipe("lacache", budget=24, every=every)
    cache = policy.cache(model)
    model(input_ids=tokens(0, 60), past_key_values=cache)
    for step in range(30):
        model(input_ids=tokens(step, 1), past_key_values=cache)

    ladder = policy.scorer.ladder(4)
    for layer, positions in enumerate(cache.positions):
        chunks = [60, *[every] * (30 // every)]
        *_, expected = decoded(policy, layer, 4, chunks)
        assert torch.equal(positions, expected.expand_as(positions))
        assert 24 - ladder.drops < positions.shape[-1] <= 24


@torch.no_grad()
@pytest.mark.sampled(4, "usage")
@pytest.mark.parametrize("usage", USAGES)
def test_every_usage_is_exact(usage):
    model = tiny_model("llama", num_hidden_layers=4)
    assert USAGES[usage](model, small_policy("lacache")) <= 1e-4


@attrs.frozen(kw_only=True)
class Comparing(LadderScorer):
    """Compares what the host knows of a plan with what the state says."""

    known: Counter = attrs.field(factory=Counter, eq=False)

    def accumulate_noted(self, observation, *, sinks=0, recent=0):
        unknown = attrs.evolve(observation, noted=None)
        expected, _ = super().accumulate_noted(unknown, sinks=sinks, recent=recent)
        found, noted = super().accumulate_noted(observation, sinks=sinks, recent=recent)
        assert torch.equal(found, expected)
        planner = self.planner(observation.num_layers, observation.budget)
        if observation.state is not None:
            cursors = known_cursors(observation, planner.start)
            self.known[cursors is not None] += 1
        return found, noted


@attrs.frozen(kw_only=True)
class ComparingAllocator(LadderAllocator):
    """Compares the counts that are noted with those of the scores."""

    known: Counter = attrs.field(factory=Counter, eq=False)

    def allocate(self, scores, observation, budget):
        found = super().allocate(scores, observation, budget)
        expected = super().allocate(scores, attrs.evolve(observation, noted=None), budget)
        assert torch.equal(found, expected)
        self.known[observation.noted is not None] += 1
        return found


SETTINGS = {
    "as published": {},
    "every third token": {"every": 3},
    "protected": {"sinks": 3, "recent": 5},
    "a small share": {"budget": 0.3},
    "smoothed": {"smoother": "spatiotemporal"},
    "the authors' groups": {"groups": "authors", "span": 3, "overlap": 2},
}


@torch.no_grad()
@pytest.mark.sampled(12, "usage", "setting")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("usage", sorted(set(USAGES) - OF_PLAIN_DATA))
def test_the_host_knows_what_the_state_says_in_every_usage(usage, setting):
    model = tiny_model("llama", num_hidden_layers=4)
    settings = dict(SETTINGS[setting])
    own = {name: settings.pop(name) for name in ("groups", "span", "overlap") if name in settings}
    parts = {"scorer": Comparing(**own), "allocator": ComparingAllocator()}
    assert USAGES[usage](model, small_policy("lacache", **parts, **settings)) <= 1e-4


def test_the_host_knows_all_plans_of_tokens_that_follow_one_another():
    model = tiny_model("llama", num_hidden_layers=4)
    scorer, allocator = Comparing(), ComparingAllocator()
    policy = kvpolicy.recipe("lacache", budget=24, scorer=scorer, allocator=allocator)
    cache = policy.cache(model)
    model(input_ids=tokens(0, 60, 2), past_key_values=cache)
    for step in range(3):
        model(input_ids=tokens(step, 1, 2), past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    model(input_ids=tokens(9, 1, 2), past_key_values=cache)
    assert scorer.known == {True: 16}
    assert allocator.known == {True: 20}
    cache.crop(-1)
    model(input_ids=tokens(10, 1, 2), past_key_values=cache)
    assert scorer.known == {True: 16, False: 4}


def test_a_plan_that_drops_protected_rows_is_not_noted():
    scorer = LadderScorer(start=2)
    layer = observation(positions=10, budget=8, num_layers=4)
    for protected, known in [({"recent": 1}, True), ({"recent": 8}, False), ({"sinks": 5}, False)]:
        state, noted = scorer.accumulate_noted(layer, **protected)
        assert (noted is not None) is known
        assert torch.equal(state, scorer.accumulate(layer))


def test_the_default_span_is_half_of_the_layers():
    assert [LadderScorer().ladder(layers).span for layers in (2, 28, 32)] == [1, 14, 16]
    assert LadderScorer(overlap=3).ladder(4).span == 4


@pytest.mark.parametrize(("span", "layers"), [(16, 16), (17, 16), (None, 1)])
def test_a_span_over_all_layers_is_refused(span, layers):
    facts = ModelFacts(name="tiny", layers=layers, heads=4, kv_heads=2, has_rotary=True)
    with pytest.raises(InvalidValueError, match=f"'span' must be below .* tiny has {layers}"):
        LadderScorer(span=span).check_model(facts)
    LadderScorer(span=span).check_model(attrs.evolve(facts, layers=18))


def test_a_model_with_too_few_layers_is_refused_before_any_work():
    model = tiny_model("llama", num_hidden_layers=2)
    policy = kvpolicy.recipe("lacache", scorer={"name": "lacache", "span": 2}, budget=24)
    with pytest.raises(InvalidValueError, match="'span' must be below"):
        policy.cache(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": 0}, "'span' must be at least 1, not 0"),
        ({"span": 4, "overlap": 4}, "overlap=4 must be below span=4"),
        ({"overlap": -1}, "'overlap' must be at least 0, not -1"),
        ({"start": 1.5}, "'start' must be an int, not 1.5"),
        ({"groups": "all"}, "'groups' must be one of 'fitting', 'authors', not 'all'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'lacache': {message}"):
        kvpolicy.compose(scorer={"name": "lacache", **options})


@torch.no_grad()
def test_heads_get_equally_many_where_a_smoother_has_mixed_their_scores():
    scores = torch.tensor([[[0.1, -0.2, 0.3, 0.4], [-0.1, -0.2, 0.3, -0.4]]])
    assert LadderAllocator().allocate(scores, observation(), 4).tolist() == [[3, 3]]
    policy = small_policy("lacache", smoother="spatiotemporal", budget=8, recent=1)
    model = tiny_model("llama", num_hidden_layers=4)
    for usage in ("five turns", "four threads", "padded row alone"):
        assert USAGES[usage](model, policy) <= 1e-4
