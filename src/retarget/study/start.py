"""Give every run of a worker the same start, whatever earlier runs did to the process."""

import gc
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from retarget.errors import UserError
from retarget.study.identity import measured_by, own_sources


class Start:
    """The state of a process, remembered before its first run and restored before each other one.

    It is remembered after the task was imported, so that what a task's file sets for all its runs stays set. torch is
    not imported for this: if a run is the first to import it, it is seeded and remembered at that moment.
    """

    def __init__(self) -> None:
        self._around: _Surroundings | None = None
        self._torch: _TorchState | None = None
        self._seed, self._threads = 0, 1
        self._loaded: set[str] = set()

    def take(self, seed: int, threads: int) -> None:
        """Restore the process, and seed its random number generators.

        Args:
            seed: the run's seed.
            threads: intra-operation threads of torch.
        """
        gc.collect()
        self._seed, self._threads = seed, threads
        if self._around is None:
            self._around = _Surroundings.now()
            if "torch" not in sys.modules:
                sys.meta_path.insert(0, _WhenImported("torch", self._take_torch))
        else:
            self._around.restore()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - tasks and libraries may draw from it
        if "torch" in sys.modules:
            self._take_torch(sys.modules["torch"])

    def refuse_changed(self, parts: Iterable[str], recorded: Mapping[str, str]) -> None:
        """Refuse a run whose code was changed on disk after its command recorded it, and before it was loaded here.

        Args:
            parts: import paths of the user's own code.
            recorded: fingerprints of its files, by their names.

        Raises:
            UserError: a file that this process has loaded since its last run, or may load later, differs.
        """
        parts = tuple(parts)
        found = own_sources(parts)
        known = {name: path for name, path in found.items() if name in recorded and name not in self._loaded}
        changed = [str(path) for name, path in known.items() if measured_by(path, {}, parts) != recorded[name]]
        if changed:
            raise UserError(
                f"{', '.join(changed)} was changed after this command began, so the run would be recorded under code "
                "that did not make it. Run the same command again when the code is as you want it"
            )
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        self._loaded |= {name for name, path in known.items() if str(path) in files}

    def _take_torch(self, torch: Any) -> None:
        if self._torch is None:
            self._torch = _TorchState.now(torch)
        else:
            self._torch.restore(torch)
        torch.set_num_threads(self._threads)
        torch.manual_seed(self._seed)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Surroundings:
    directory: str
    variables: dict[str, str]
    numpy_errors: Any
    mask: int

    @classmethod
    def now(cls) -> "_Surroundings":
        mask = os.umask(0)
        os.umask(mask)
        return cls(os.getcwd(), dict(os.environ), np.geterr(), mask)  # noqa: PTH109 - given back as it was

    def restore(self) -> None:
        os.chdir(self.directory)
        for name in os.environ.keys() - self.variables.keys():
            del os.environ[name]
        os.environ.update(self.variables)
        np.seterr(**self.numpy_errors)
        os.umask(self.mask)


@dataclass(frozen=True)
class _TorchState:
    dtype: Any
    device: Any
    gradients: bool
    deterministic: tuple[bool, bool]
    cudnn: tuple[bool, bool]
    precision: str

    @classmethod
    def now(cls, torch: Any) -> "_TorchState":
        cudnn = torch.backends.cudnn
        return cls(
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            _deterministic(torch),
            (cudnn.deterministic, cudnn.benchmark),
            torch.get_float32_matmul_precision(),
        )

    def restore(self, torch: Any) -> None:
        torch.set_default_dtype(self.dtype)
        if torch.get_default_device() != self.device:
            torch.set_default_device(None if self.device.type == "cpu" else self.device)
        torch.set_grad_enabled(self.gradients)
        if _deterministic(torch) != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic[0], warn_only=self.deterministic[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.cudnn
        if torch.get_float32_matmul_precision() != self.precision:
            torch.set_float32_matmul_precision(self.precision)


def _deterministic(torch: Any) -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


class _WhenImported(MetaPathFinder):
    """Calls a function with a module as soon as it has been imported for the first time."""

    def __init__(self, name: str, then: Any) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = [one for one in sys.meta_path if one is not self]
        spec = next((spec for one in others if (spec := one.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
