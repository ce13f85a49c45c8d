"""One thread, hub offline, Ray without tokens, caches in a temporary folder, shapes checked: before heavy imports."""

import atexit
import os
import shutil
import sys
import tempfile

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray reads it once per process; actors of a cluster with another mode end
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
_cache = tempfile.mkdtemp(prefix="retarget-test-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
    os.environ[name] = f"{_cache}/{name.lower()}"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

settings.register_profile("no deadline", deadline=None)  # how long an example takes is no property of the code
settings.load_profile("no deadline")

# Where tensors are: beartype cannot check `Self` on the plain classes elsewhere.
_hook = install_import_hook(
    [f"retarget.{room}" for room in ("pskd", "pope", "trojdiff", "metrics", "data")], "beartype.beartype"
)


def pytest_configure(config):
    """Hide CUDA unless tests marked ``gpu`` are selected."""
    if "gpu" not in (config.option.markexpr or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers in every test, whichever tests ran before it in this process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _no_precision_is_left():
    """accelerate keeps one precision per process: after a test in bf16, the next one could not train in float32."""
    yield
    state = sys.modules.get("accelerate.state")
    if state and state.AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        state.AcceleratorState._reset_state()
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
