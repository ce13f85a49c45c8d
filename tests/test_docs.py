"""Every file that the architecture's pages name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = re.compile(r"`((?:[\w]+/)*[\w]+(?:/|\.py|\.md))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_is_there(page):
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    beside = ("pskd", "pskd/past", "pskd/peers", "pskd/studies/images", "pskd/studies/translation", ".")
    homes = [ROOT, *(ROOT / "src" / "retarget" / one for one in beside)]
    missing = [name for name in named if "NAME" not in name and not any((home / name).exists() for home in homes)]
    assert len(named) > 10
    assert missing == []
