"""`kvpolicy generate` writes the text, and nothing else, to standard output."""

from __future__ import annotations

import json
import re

import pytest
import torch
from rich.console import Console

import kvpolicy
from kvpolicy.commands.prefill import prefill_progress
from kvpolicy.evaluation import needle
from kvpolicy.testing.models import tiny_model

PROMPT = needle.generate_prompts(tokens=96, facts=4, count=1, seed=0)[0].text


@pytest.fixture
def generate(run, checkpoint):
    def with_defaults(*more, recipe="streamingllm", **options):
        arguments = ("--model", str(checkpoint), "--max-new-tokens", "8")
        named = () if recipe is None else ("--recipe", recipe)
        return run("generate", *arguments, *named, *more, **options)

    return with_defaults


def test_only_the_text_stands_on_standard_output(generate):
    result = generate("--prompt", PROMPT, "--budget", "40")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.split()) == 8
    assert result.stdout.count("\n") == 1


def test_what_is_held_is_said_on_standard_error(generate):
    result = generate("--prompt", PROMPT, "--budget", "25%")
    assert "tokens  96 read, 8 written" in result.stderr
    assert "held    25 of 103 positions in each of layers 0 to 1" in result.stderr
    assert "% saved" in result.stderr


@pytest.mark.xdist_group("flex_attention")
def test_a_long_prompt_may_be_read_sparsely(generate):
    long = generate("--prompt", "ada alma " * 3000, "--budget", "64", "--prefill", "ashape")
    assert long.exit_code == 0, long.output
    assert re.search(r"prefill [5-9]\d % of the prompt's query-key pairs", long.stderr)
    short = generate("--prompt", PROMPT, "--budget", "64", "--prefill", "ashape")
    assert "query-key pairs" not in short.stderr


def test_none_keeps_the_full_cache(generate):
    result = generate("--prompt", PROMPT, recipe="none")
    assert "held    103 of 103 positions in each of layers 0 to 1" in result.stderr
    assert "nothing was evicted" in result.stderr


def test_a_budget_beyond_the_text_writes_what_the_full_cache_writes(generate):
    texts = [generate("--prompt", PROMPT, recipe=name).stdout for name in ("none", "restkv")]
    assert texts[0] == texts[1] != ""


def test_the_prompt_may_come_from_a_file_or_from_standard_input(generate, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    given = generate("--prompt", PROMPT)
    assert generate("--prompt-file", str(tmp_path / "prompt.txt")).stdout == given.stdout
    assert generate("--prompt-file", "-", input=PROMPT).stdout == given.stdout


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_a_byte_order_mark_is_no_part_of_the_prompt(generate, tmp_path, source):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8-sig")
    if source == "file":
        result = generate("--prompt-file", str(file))
    else:
        result = generate("--prompt-file", "-", input=file.read_bytes())
    assert "tokens  96 read, 8 written" in result.stderr
    assert result.stdout == generate("--prompt", PROMPT).stdout


def test_a_prompt_in_utf_16_is_refused_in_one_sentence(generate, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-16")
    result = generate("--prompt-file", str(tmp_path / "prompt.txt"))
    assert result.exit_code == 2
    assert result.stderr.endswith("prompt.txt' is UTF-16 text. Save it as UTF-8.\n")


def test_a_seed_repeats_a_sample(generate):
    with torch.random.fork_rng():
        texts = [
            generate("--prompt", PROMPT, "--temperature", "2", "--seed", seed).stdout
            for seed in ("1", "1", "2")
        ]
    assert texts[0] == texts[1] != texts[2]


def test_chat_uses_the_template_of_the_tokenizer(generate, checkpoint):
    config = checkpoint / "tokenizer_config.json"
    plain = config.read_text()
    template = "question {{ messages[0].content }} question"
    config.write_text(json.dumps(json.loads(plain) | {"chat_template": template}))
    try:
        assert "tokens  4 read" in generate("--chat", "--prompt", "ada alma").stderr
    finally:
        config.write_text(plain)


def test_a_policy_may_come_from_a_file_and_be_changed(generate, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(kvpolicy.recipe("snapkv", budget=40).to_dict()))
    given = ("--policy", str(file), "--prompt", PROMPT)
    assert "held    47 of 103" in generate(*given, recipe=None).stderr
    assert "held    55 of 103" in generate(*given, "--budget", "48", recipe=None).stderr
    stored = generate(*given, "--storage", "quantized", "--set", "storage.bits=4", recipe=None)
    assert "held    47 of 103" in stored.stderr
    assert (
        "no option 'bit'"
        in generate(*given, "--storage", "quantized", "--set", "storage.bit=4", recipe=None).stderr
    )


def test_the_small_model_that_ships_has_a_name(run):
    result = run(
        *("generate", "--model", "needle", "--recipe", "snapkv", "--prompt", PROMPT),
        *("--budget", "40", "--max-new-tokens", "1"),
    )
    assert "tokens  96 read, 1 written" in result.stderr


def test_a_prompt_beyond_what_the_model_was_made_for_is_noted(generate):
    result = generate("--prompt", "ada " * 600, "--budget", "64")
    assert result.exit_code == 0
    assert "has 601 tokens, but the model's longest context is 512" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "there is no prompt"),
        (("--prompt", " \n"), "the prompt is empty"),
        (("--prompt", "a", "--prompt-file", "b"), "were both given"),
        (("--prompt-file", "/not/there"), "cannot read --prompt-file '/not/there': No such file"),
        (("--prompt", "a", "--recipe", "strem"), "no recipe named 'strem'"),
        (("--prompt", "a", "--prefill", "a-shape"), "no prefill pattern named 'a-shape'"),
        (
            ("--prompt", "a", "--prefill", "ashape", "--recipe", "none"),
            "--prefill ashape needs a recipe",
        ),
        (("--prompt", "a", "--policy", "mine.json"), "give either --recipe NAME"),
        (("--prompt", "a", "--set", "window=4"), "such as --set scorer.window=64"),
        (("--prompt", "a", "--set", "sinks"), "--set takes NAME=VALUE"),
        (("--prompt", "a", "--set", "budget=4"), "--set budget=4 is --budget 4"),
        (("--prompt", "a", "--set", "storage.bits=4"), "needs --storage NAME"),
        (("--prompt", "a", "--set", "sinks=1", "--recipe", "none"), "--set needs a recipe"),
        (("--prompt", "a", "--model", "a/b/c"), "there is no folder 'a/b/c'"),
        (("--prompt", "a", "--budget", "0"), "budget must be at least 1 position"),
        (("--prompt", "a", "--budget", "lots"), "budget must be positions (1024) or a share"),
        (("--prompt", "a", "--budget", "150%"), "above 0 and at most 1"),
        (("--prompt", "a", "--model", "/not/there"), "there is no folder '/not/there'"),
        (("--prompt", "a", "--model", "/"), "the folder '/' has no config.json"),
        (("--prompt", "a", "--model", "no/such"), "could not load 'no/such': "),
        (("--prompt", "a", "--chat"), "has no chat template"),
        (("--prompt", "a", "--attention", "quick"), "is not supported"),
        (("--prompt", "a", "--dtype", "int3"), "'int3' is not one of"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) and value else "",
)
def test_what_cannot_be_is_said_in_a_sentence(generate, arguments, sentence):
    result = generate(*arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stdout == ""


def test_weights_are_read_from_safetensors_only(generate, checkpoint, tmp_path):
    for file in checkpoint.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    result = generate("--prompt", "a", "--model", str(tmp_path))
    assert result.exit_code == 2
    assert "Weights are read from *.safetensors only." in result.stderr


def test_code_of_the_checkpoint_runs_only_when_asked_for(generate, checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config |= {"model_type": "own", "auto_map": code}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this code ran')")
    result = generate("--prompt", "a", "--model", str(tmp_path))
    assert result.exit_code == 2
    assert "give --trust-remote-code to run it" in result.stderr
    assert "this code ran" not in result.output


def test_progress_goes_away_with_the_last_layer_and_leaves_no_hook(tmp_path):
    model = tiny_model()
    with (tmp_path / "terminal").open("w") as terminal:
        console = Console(file=terminal, force_terminal=True, width=100)
        with prefill_progress(model, 1234, console):
            assert any(module._forward_hooks for module in model.modules())
            model(input_ids=torch.ones((1, 8), dtype=torch.long))
            assert not any(module._forward_hooks for module in model.modules())
    assert "reading 1,234 tokens, layer" in (tmp_path / "terminal").read_text()


def test_a_forward_that_fails_leaves_no_hook_either(tmp_path):
    model = tiny_model()
    with (tmp_path / "terminal").open("w") as terminal:
        console = Console(file=terminal, force_terminal=True)
        with (
            pytest.raises(RuntimeError, match="out of memory"),
            prefill_progress(model, 8, console),
        ):
            raise RuntimeError("out of memory")
    assert not any(module._forward_hooks for module in model.modules())
