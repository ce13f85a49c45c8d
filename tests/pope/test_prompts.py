import pytest

from retarget.errors import UserError
from retarget.pope.prompts import Prompts

PROBLEM = "Let $a_{problem}$ and {prefix} be. Find \\frac{1}{2}."


def test_guided_and_unguided_share_the_system_message_and_the_prefix_is_the_users():
    prompts = Prompts.load()
    alone, guided = prompts.without_prefix(PROBLEM), prompts.with_prefix(PROBLEM, "We begin {problem}")
    assert [m["role"] for m in alone] == [m["role"] for m in guided] == ["system", "user"]
    assert alone[0] == guided[0]
    assert PROBLEM in alone[1]["content"]
    assert PROBLEM in guided[1]["content"]
    assert "We begin {problem}" in guided[1]["content"]
    assert "boxed" in guided[1]["content"]


def test_variants_and_a_users_own_templates(tmp_path):
    assert "Do not repeat" in Prompts.load(variant="guided_no_restate").guided
    (tmp_path / "guided.txt").write_text("{problem} >> {prefix}\n")
    (tmp_path / "system.txt").write_text("")
    prompts = Prompts.load(tmp_path, chat=False)
    assert prompts.with_prefix("a", "b") == "a >> b"
    assert prompts.without_prefix("a").startswith("a\n")
    assert Prompts.load(chat=False).without_prefix("a").startswith("You solve")


def test_faulty_templates_and_prefixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must contain \{problem\} and \{prefix\} exactly once"):
        Prompts("{problem}", "{problem} {prefix} {prefix}")
    with pytest.raises(UserError, match="unguided template"):
        Prompts("{problem} {prefix}", "{problem} {prefix}")
    with pytest.raises(UserError, match="no such directory"):
        Prompts.load(tmp_path / "none")
    (tmp_path / "Guided.md").write_text("{problem} {prefix}")
    with pytest.raises(UserError, match=r"has no template: .* system\.txt or unguided\.txt or guided\.txt or"):
        Prompts.load(tmp_path)
    with pytest.raises(UserError, match=r"no template other\.txt"):
        Prompts.load(variant="other")
    (tmp_path / "unguided.txt").write_bytes("Löse {problem}".encode("latin-1"))
    with pytest.raises(UserError, match=r"unguided\.txt is not UTF-8 \(byte 1\): save the template as UTF-8"):
        Prompts.load(tmp_path)
    with pytest.raises(UserError, match="prefix is empty"):
        Prompts.load().with_prefix("a", " \n")


def test_a_word_in_braces_that_is_no_placeholder_is_told_of(caplog):
    Prompts(
        "{problem} \\boxed{answer} \\frac{ab}{cd} $x_{max}^{min}$ \\{set\\} {1}", "{problem}{prefix}", "In \\boxed{}."
    )
    assert not caplog.text
    Prompts("{question} {problem}{hint} {hint}", "{problem} {prefix}", "Solve {problem}.")
    told = "which is no placeholder there: the model reads it as it is written"
    assert [one.getMessage() for one in caplog.records] == [
        f"the system template has {{problem}}, {told}", f"the unguided template has {{question}}, {{hint}}, {told}"
    ]  # fmt: skip
