import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.vllm.policies import check_policy


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("h2o", {}, 'every=1 evicts while decoding.*add "every": null'),
        ("snapkv", {"slot_positions": True}, "slot_positions=True turns keys anew"),
        ("adakv", {}, "heads of a layer different numbers of positions"),
        ("pyramidkv", {}, "layers different numbers of positions.*uniform"),
        ("snapkv", {"budget": kvpolicy.within(0.1)}, "an error target .* share the blocks"),
        ("layerdefensivekv", {}, "allocator 'layerdefensivekv'.*different numbers of positions"),
        ("kvzip", {"allocator": "uniform"}, "scorer 'kvzip'.*vLLM reads each once.*Use the scorer"),
        ("lookm", {"every": None}, "compactor 'lookm'.*changes keys or values"),
    ],
)
def test_a_policy_that_blocks_cannot_hold_is_refused_by_name(recipe, changes, message):
    policy = kvpolicy.recipe(recipe, **{"budget": 128} | changes)
    with pytest.raises(InvalidValueError, match=message):
        check_policy(policy)


def _refusal(recipe):
    policy = kvpolicy.recipe(recipe, budget=128, every=None, slot_positions=False)
    try:
        check_policy(policy)
    except InvalidValueError as refusal:
        return str(refusal)
    return None


def test_every_recipe_is_served_or_refused_by_name():
    refusals = {part.name: _refusal(part.name) for part in kvpolicy.installed("recipe")}
    assert all("Use the" in reason for reason in refusals.values() if reason)
    served = [name for name, reason in refusals.items() if reason is None]
    assert {"restkv", "snapkv", "expectedattention", "keydiff", "chunkkv", "random"} <= set(served)
    assert {"h2o", "tova", "streamingllm", "knorm"} <= set(served)
    assert not {"adakv", "pyramidkv", "cam", "lookm", "headkv"} & set(served)
