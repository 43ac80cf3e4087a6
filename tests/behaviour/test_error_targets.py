"""An error target in models: exact in every usage, saved, in rows and on the command line."""

import json

import pytest
import torch

import kvpolicy
from kvpolicy.budget import Within
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.evaluate import evaluate
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import USAGES, tokens
from kvpolicy.testing.models import tiny_model


def policy(error=0.2, recipe="snapkv", **changes):
    scorer = kvpolicy.recipe(recipe).to_dict()["scorer"] | {"window": 8}
    budget = kvpolicy.within(error, window=8)
    return kvpolicy.recipe(recipe, **{"scorer": scorer, "budget": budget} | changes)


def held(cache):
    return torch.stack([(each >= 0).sum(-1) for each in cache.positions])


@pytest.mark.parametrize(
    "usage",
    [
        "left padded batch",
        "padded row alone",
        "second turn by generate",
        "chunked prefill",
        "saved and loaded",
    ],
)
def test_logits_are_those_of_the_masked_full_cache(usage):
    found = USAGES[usage](tiny_model("qwen3"), policy(recipe="restkv"))
    assert found <= LIMIT


def test_turns_of_their_own_keep_what_earlier_turns_kept():
    model, per_turn = tiny_model("llama"), policy(per_turn=True)
    with per_turn.cache(model) as cache:
        model(tokens(0), past_key_values=cache)
        before = [each.clone() for each in cache.positions]
        model(tokens(1, 50), past_key_values=cache)
        for old, new in zip(before, cache.positions, strict=True):
            for head, kept in zip(old[0], new[0], strict=True):
                assert set(head[head >= 0].tolist()) < set(kept.tolist())
        assert held(cache).max() < 110


def test_a_saved_cache_goes_on(tmp_path):
    model, file = tiny_model("llama"), tmp_path / "context.safetensors"
    with policy().cache(model) as cache:
        model(tokens(0), past_key_values=cache)
        kvpolicy.save(cache, file)
        loaded = kvpolicy.load(file, model)
        assert loaded.policy == policy()
        assert (held(loaded) == held(cache)).all()
        for each in (cache, loaded):
            model(tokens(1, 30), past_key_values=each)
        assert (held(loaded) == held(cache)).all()


def test_heads_of_one_layer_differ_and_little_is_kept_of_much_error():
    model = tiny_model("llama")
    counts = []
    for error in (0.02, 0.5):
        with policy(error).cache(model) as cache:
            model(tokens(0, 200), past_key_values=cache)
            counts.append(held(cache))
    assert counts[1].sum() < counts[0].sum()
    assert (counts[0][..., 0] != counts[0][..., 1]).any()


def test_a_projection_that_cannot_be_read_is_refused_before_any_work():
    model = tiny_model("llama")

    class Bent(torch.nn.Module):
        def forward(self, states):
            return states.abs()

    model.model.layers[1].self_attn.o_proj = Bent()
    with pytest.raises(
        UnsupportedModelError, match=r"'within 20 %, window 8' measures .* a budget in positions"
    ):
        policy().cache(model)


def test_layers_that_share_keys_are_refused():
    with pytest.raises(UnsupportedModelError, match="share their keys and values"):
        policy().cache(tiny_architecture("gemma4_text", num_kv_shared_layers=2))


@pytest.fixture
def data():
    prompts = needle.generate_prompts(tokens=96, facts=4, count=2, seed=0)
    return [{"prompt": each.text, "answer": each.answer} for each in prompts]


def test_rows_with_error_targets_are_written_read_and_reported(tmp_path, data):
    model, tokenizer = needle.load()
    arguments = {
        "data": data,
        "recipes": ["snapkv", "adakv"],
        "budgets": [48, 0.5, kvpolicy.within(0.1), kvpolicy.within(0.3, cap=60)],
        "results": tmp_path / "rows.jsonl",
        "max_new_tokens": 4,
        "references": False,
    }
    found = evaluate(model, tokenizer, **arguments)
    rows = list(Results(tmp_path / "rows.jsonl"))
    assert {row.budget for row in rows} >= {Within(0.1), Within(0.3, cap=60)}
    assert evaluate(model, tokenizer, **arguments).rows == found.rows
    by_title = {cell.title: cell for cell in found.cells}
    assert 32 < by_title["snapkv at within 30 %, at most 60"].positions <= 60
    assert "shares out a number" in by_title["adakv at within 10 %"].error
    assert "within 10 %" in found.markdown()
    assert "within 10 %" in found.html()
    json.dumps(found.to_dict())


def test_the_command_line_reads_error_targets(run, tmp_path, data):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, data)))
    command = ("eval", "--model", str(needle.MODEL), "--recipes", "snapkv", "--limit", "1")
    result = run(
        *command, "--budgets", "within:10%,within:0.3:60", "--data", str(file), "--no-references",
        "--max-new-tokens", "4", "--output", str(tmp_path / "rows.jsonl"), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    budgets = [cell["budget"] for cell in json.loads(result.stdout)["cells"]]
    assert {"within": 0.3, "window": 32, "cap": 60} in budgets
    wrong = run(*command, "--budgets", "within:2", "--data", str(file))
    assert wrong.exit_code == 2
    assert "above 0 and below 1, but is 2" in wrong.stderr


def test_the_demo_compares_equal_positions():
    from kvpolicy.evaluation.demo.run import check_budgets

    with pytest.raises(InvalidValueError, match="within 2 % is an error target"):
        check_budgets([64, kvpolicy.within(0.02)])
