"""A conversation goes on with its cache from turn to turn."""

import pytest

import kvpolicy
from kvpolicy.commands import conversation as module
from kvpolicy.commands.chosen import Chosen
from kvpolicy.commands.conversation import Conversation, asked
from kvpolicy.evaluation import needle

TEMPLATE = (
    "{% for each in messages %}{{ 'question ' if each.role == 'user' }}{{ each.content }} "
    "{% endfor %}"
)
TEXTS = ["password ada amber", "password alma", "cobalt"]


@pytest.fixture
def hold(capsys):
    model, tokenizer = needle.load()

    def held(template, policy, texts=TEXTS):
        tokenizer.chat_template = template
        talk = Conversation(
            tokenizer=tokenizer,
            choice=Chosen(policy=policy, extras={}),
            sampling={"max_new_tokens": 1, "do_sample": False},
            in_template=True,
        )
        talk.hold(model, texts)
        return talk, capsys.readouterr()

    return held


@pytest.mark.parametrize("recipe", [None, "snapkv"])
def test_each_turn_reads_only_what_is_new(hold, recipe):
    policy = recipe and kvpolicy.recipe(recipe, budget=512)
    talk, printed = hold(TEMPLATE, policy)
    assert [each["role"] for each in talk.messages] == ["user", "assistant"] * 3
    read = [line.split()[1] for line in printed.err.splitlines() if line.startswith("tokens")]
    assert read == ["4", "3", "2"]
    assert len(printed.out.splitlines()) == 3


def test_the_full_cache_and_a_large_budget_say_the_same(hold):
    said = [hold(TEMPLATE, policy)[0].messages for policy in (None, kvpolicy.recipe("snapkv"))]
    assert said[0] == said[1]


@pytest.mark.parametrize("recipe", [None, "snapkv"])
def test_a_template_that_changes_earlier_turns_has_all_read_anew(hold, recipe):
    last = "question {{ messages | length }} {{ messages[-1].content }}"
    talk, printed = hold(last, recipe and kvpolicy.recipe(recipe, budget=512), TEXTS[:2])
    assert "all of it is read anew" in printed.err
    assert talk.read.shape == (1, 4 + 1)


def test_what_is_typed_is_asked_until_the_input_ends(monkeypatch):
    typed = iter(["one", "  ", "two"])

    def console_input(self, prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(module.Console, "input", console_input)
    assert list(asked(["zero"])) == ["zero", "one", "two"]
