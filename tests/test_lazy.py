"""Names that are loaded on first use."""

import importlib
import subprocess
import sys

import pytest

from retarget.extras import MissingExtraError
from retarget.lazy import lazy


@pytest.mark.parametrize("name", ["pskd", "pskd.peers", "metrics", "report"])
def test_a_package_lists_its_names_and_gives_each(name):
    package = importlib.import_module(f"retarget.{name}")
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, one).__name__ == one for one in package.__all__)
    with pytest.raises(AttributeError, match=f"module 'retarget.{name}' has no attribute 'nonesuch'"):
        package.nonesuch  # noqa: B018


def test_listing_the_names_loads_nothing():
    code = "import sys, retarget.pskd as p; dir(p); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_extra_is_said_before_its_module_is_imported():
    load, _ = lazy("retarget", {"UserError": "errors"}, {"errors": ("no_such_package_at_all", "vision")})
    with pytest.raises(MissingExtraError, match=r"pip install 'retarget\[vision\]'"):
        load("UserError")
