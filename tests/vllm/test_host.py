import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from transformers import AutoModelForCausalLM
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

import kvpolicy
from kvpolicy.evaluation.serving.engine import Served, core_of, engine, worker_of
from kvpolicy.evaluation.serving.models import saved
from kvpolicy.evaluation.serving.situations import prompts
from kvpolicy.evaluation.serving.yardstick import compared

POLICY = {"recipe": "restkv", "budget": 64}
[PROMPT] = prompts(256, (150,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def logprobs_without_a_policy(folder):
    # A process has one engine at a time, so this one ends before the other starts.
    with engine(folder, None) as plain:
        _add(plain, "a", PROMPT, prompt_logprobs=0)
        [found] = _finish(plain)
    return _of_prompt(found)


@pytest.fixture(scope="module")
def llm(folder, logprobs_without_a_policy):
    with engine(folder, POLICY, max_num_batched_tokens=96) as made:
        yield made


@pytest.fixture
def pool(llm):
    return core_of(llm).scheduler.kv_cache_manager.block_pool


def _add(llm, name, prompt, **params):
    given = SamplingParams(
        max_tokens=4,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **params,
    )
    return llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, given)


def _of_prompt(output):
    told = zip(output.prompt_logprobs[1:], PROMPT[1:], strict=True)
    return [each[token].logprob for each, token in told]


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


def test_several_answers_to_one_prompt_attend_to_what_it_keeps(llm, folder):
    # Without a seed: with one, vLLM 0.32 fails on a CPU where a prompt is read in chunks.
    _add(llm, "a", PROMPT, n=3, temperature=0.8, logprobs=0)
    [found] = _finish(llm)
    assert len(found.outputs) == 3
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    for answer in found.outputs:
        logprobs = [
            each[token].logprob
            for each, token in zip(answer.logprobs, answer.token_ids, strict=True)
        ]
        served = Served(PROMPT, tokens=list(answer.token_ids), logprobs=logprobs)
        assert compared(model, kvpolicy.recipe("restkv", budget=64), served).difference < 1e-4


def test_log_probabilities_of_the_prompt_are_those_of_the_full_cache(
    llm, logprobs_without_a_policy
):
    _add(llm, "a", PROMPT, prompt_logprobs=0)
    [found] = _finish(llm)
    for own, want in zip(_of_prompt(found), logprobs_without_a_policy, strict=True):
        assert own == pytest.approx(want, abs=1e-4)
