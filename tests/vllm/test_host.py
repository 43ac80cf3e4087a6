import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from vllm import SamplingParams

from kvpolicy.evaluation.serving.engine import core_of, engine, serve, worker_of
from kvpolicy.evaluation.serving.models import saved
from kvpolicy.evaluation.serving.situations import SITUATIONS, prompts

POLICY = {"recipe": "restkv", "budget": 64}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = saved("llama", tmp_path_factory.mktemp("models"))
    with engine(folder, POLICY, max_num_batched_tokens=96) as made:
        yield made


@pytest.fixture
def pool(llm):
    return core_of(llm).scheduler.kv_cache_manager.block_pool


def _add(llm, name, prompt, **params):
    given = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False, **params)
    return llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, given)


def _finish(llm):
    found = []
    while llm.llm_engine.has_unfinished_requests():
        found += [each for each in llm.llm_engine.step() if each.finished]
    return found


def test_a_thousand_requests_leave_nothing_behind(llm, pool):
    free, host = pool.get_num_free_blocks(), worker_of(llm).kvpolicy_host
    for at, prompt in enumerate(prompts(256, [33 + 7 * (at % 20) for at in range(1000)])):
        params = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False)
        llm.llm_engine.add_request(str(at), {"prompt_token_ids": prompt}, params)
    most = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        most = max(most, len(host.prompts))
    assert most <= 2
    assert len(host.prompts) == 0
    assert pool.get_num_free_blocks() == free


def test_a_prompt_that_is_aborted_half_read_leaves_nothing_behind(llm, pool):
    free, host = pool.get_num_free_blocks(), worker_of(llm).kvpolicy_host
    [prompt, other] = prompts(256, (300, 20))
    name = _add(llm, "a", prompt)
    llm.llm_engine.step()
    assert len(host.prompts) == 1
    llm.llm_engine.abort_request([name or "a"])
    _add(llm, "b", other)
    _finish(llm)
    assert len(host.prompts) == 0
    assert pool.get_num_free_blocks() == free


def test_after_the_prompt_a_request_holds_the_blocks_of_what_is_kept(llm, pool):
    free = pool.get_num_free_blocks()
    [prompt] = prompts(256, (96,))
    _add(llm, "a", prompt)
    llm.llm_engine.step()
    assert free - pool.get_num_free_blocks() == 3
    llm.llm_engine.step()
    # 64 of 96 positions are kept, and the next token needs a block.
    assert free - pool.get_num_free_blocks() == 3
    _finish(llm)


def test_several_answers_to_one_prompt_are_those_of_as_many_requests(llm):
    [prompt] = prompts(256, (200,))
    _add(llm, "a", prompt, n=3, temperature=0.8, seed=5)
    [together] = _finish(llm)
    for at, answer in enumerate(sorted(together.outputs, key=lambda each: each.index)):
        _add(llm, f"b{at}", prompt, temperature=0.8, seed=5 + at)
        [alone] = _finish(llm)
        assert list(answer.token_ids) == list(alone.outputs[0].token_ids)


def test_log_probabilities_of_the_prompt_are_those_of_the_full_cache(llm, tmp_path):
    [prompt] = prompts(256, (150,))
    _add(llm, "a", prompt, prompt_logprobs=0)
    [found] = _finish(llm)
    with engine(saved("llama", tmp_path), None) as plain:
        _add(plain, "a", prompt, prompt_logprobs=0)
        [want] = _finish(plain)
    pairs = zip(found.prompt_logprobs[1:], want.prompt_logprobs[1:], prompt[1:], strict=True)
    for own, other, token in pairs:
        assert own[token].logprob == pytest.approx(other[token].logprob, abs=1e-4)


def test_prompts_within_the_budget_are_answered_bit_for_bit_as_without_a_policy(tmp_path):
    folder = saved("llama", tmp_path)
    arrivals = [each for each in SITUATIONS["one batch"].arrivals(256) if len(each.prompt) <= 64]
    answers = []
    for policy in (POLICY, None):
        with engine(folder, policy, enable_prefix_caching=False) as made:
            answers.append([(each.tokens, each.logprobs) for each in serve(made, arrivals)])
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]
