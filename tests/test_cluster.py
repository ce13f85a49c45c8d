"""Joining a Ray cluster that does not answer as it should; those that do are in tests of their users."""

import pytest

from retarget.cluster import join
from retarget.errors import UserError

ray = pytest.importorskip("ray")


def test_whatever_ray_raises_while_it_starts_is_explained(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"no Ray cluster can be used at this machine \(The current node timed out"):
        join("", remedy="wait")

    def broken(**_):
        raise KeyError("a bug")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(KeyError, match="a bug"):
        join("", remedy="wait")


def test_a_cluster_that_is_joined_by_its_address_may_ask_for_a_token(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 .*set RAY_AUTH_MODE=token"):
        join("127.0.0.1:1", remedy="wait")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError) as said:
        join("127.0.0.1:1", remedy="wait")
    assert "RAY_AUTH_MODE" not in str(said.value)
