"""`kvpolicy doctor` says what an issue report needs, and ends with status 1 if it is broken."""

import json

import pytest

import kvpolicy_kernels


def findings(result):
    return {(each["section"], each["name"]): each for each in json.loads(result.output)}


def test_it_says_what_is_installed(run):
    result = run("doctor", "--json")
    assert result.exit_code == 0
    found = findings(result)
    assert found["packages", "kvpolicy"]["found"] == "0.1.0"
    assert {"system", "packages", "devices", "kernels", "plugins", "folders"} <= {
        section for section, _ in found
    }
    assert "kernels" in run("doctor").output


def test_a_broken_plugin_is_named(run, install_plugin):
    install_plugin("faulty", "import not_there_at_all")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert "not_there_at_all" in findings(result)["plugins", "faulty"]["found"]


def test_a_plugin_of_somebody_else_is_listed_with_its_parts(run, install_plugin):
    install_plugin(
        "other",
        """
        import kvpolicy

        @kvpolicy.hookimpl
        def kvpolicy_recipes():
            return {"wide": {"scorer": "snapkv"}}
        """,
    )
    assert findings(run("doctor", "--json"))["plugins", "other"]["found"] == (
        "kvpolicy-other 1.0: recipe wide"
    )


@pytest.mark.parametrize("error", [RuntimeError("no ptxas"), ImportError("no triton")])
def test_kernels_that_fail_are_a_finding(run, monkeypatch, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(kvpolicy_kernels, "gather_kv", fails)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    [kernels] = [each for (section, _), each in findings(result).items() if section == "kernels"]
    assert str(error) in kernels["found"]
