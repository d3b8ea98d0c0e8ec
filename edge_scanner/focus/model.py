"""The focus network in ONNX Runtime: which file, on which provider, checked before it is trusted."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import Config, OpticsConfig
from edge_scanner.errors import ConfigError
from edge_scanner.focus.samples import PATCH_PX, Patches

BATCH = 6
"""Patches a run; always so many, so that a compiled engine is built for one shape only."""

THREADS = 2
NAMES = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
LARGEST_MB = 64
NEEDS_MB = {"cpu": 130, "cuda": 800, "tensorrt": 1200}
"""Resident memory of runtime and network: on a processor 110 MiB were measured (x86-64, onnxruntime 1.31); the others
are estimates, for nothing has run there yet."""
SHIPPED = Path(__file__).parent / "data" / "focus.onnx"


@dataclass(frozen=True, slots=True)
class Providers:
    """Execution providers by their short names, best first: what was asked for and what runs."""

    requested: tuple[str, ...]
    actual: tuple[str, ...]

    @property
    def degraded(self) -> bool:
        """Whether something slower runs than what was asked for first."""
        return self.actual[:1] != self.requested[:1]


@dataclass(frozen=True, slots=True)
class Objective:
    """A range of numerical apertures that a network was measured with.

    Parameters
    ----------
    lowest_na, highest_na : float
    sigma_scale : float
        By how much the stated uncertainty of a frame is to be multiplied there.
    """

    lowest_na: float
    highest_na: float
    sigma_scale: float


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A network and what its card says of it.

    Parameters
    ----------
    data : bytes
    sha256 : str
    sigma_scale : float
        By how much the stated uncertainty of a frame is to be multiplied before it is asked whether it is sure.
    objectives : tuple of Objective
        What it was measured with; empty: not said.
    """

    data: bytes
    sha256: str
    sigma_scale: float = 1.0
    objectives: tuple[Objective, ...] = ()

    @classmethod
    def open(cls, path: str) -> ModelFile:
        """Read a network and the card beside it (`NAME.json` for `NAME.onnx`); empty: the one that ships.

        Raises
        ------
        ConfigError
            Missing, too large, or not the file that its card describes.
        """
        file = Path(path) if path else SHIPPED
        try:
            if file.stat().st_size > LARGEST_MB << 20:
                raise ConfigError(f"The focus model {file} is larger than {LARGEST_MB} MB.", "Check focus.model.")
            data = file.read_bytes()
            card = file.with_suffix(".json")
            about = card.read_text("utf-8") if card.exists() else ""
        except (OSError, ValueError) as error:
            raise ConfigError(f"The focus model {file} cannot be read ({error}).", "Check focus.model.") from error
        found = cls(data, hashlib.sha256(data).hexdigest())
        return found._checked(about, str(file)) if about else found

    def require(self, optics: OpticsConfig) -> None:
        """Refuse an objective that the card does not name.

        Raises
        ------
        ConfigError
        """
        if self.objectives and self._objective(optics) is None:
            raise ConfigError(
                f"The focus model was measured at numerical apertures of {self._spans()}; this objective has "
                f"{optics.numerical_aperture:g}, where it may take one side of focus for the other.",
                'Set focus.mode = "classical", or train a model for it.',
            )

    def stretch(self, optics: OpticsConfig) -> float:
        """Return by how much an objective's standard deviations are to be multiplied beyond `sigma_scale`."""
        found = self._objective(optics)
        return 1.0 if found is None else found.sigma_scale / self.sigma_scale

    def _spans(self) -> str:
        """Return the apertures measured with, ranges that meet as one."""
        spans: list[list[float]] = []
        for one in sorted(self.objectives, key=lambda o: o.lowest_na):
            if spans and one.lowest_na <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], one.highest_na)
            else:
                spans.append([one.lowest_na, one.highest_na])
        return " and ".join(f"{low:g} to {high:g}" for low, high in spans)

    def _objective(self, optics: OpticsConfig) -> Objective | None:
        na = optics.numerical_aperture
        return next((o for o in self.objectives if o.lowest_na <= na <= o.highest_na), None)

    def _checked(self, card: str, name: str) -> ModelFile:
        try:
            about = json.loads(card)
            sha256, scale = str(about["sha256"]), float(about.get("sigma_scale", 1.0))
            objectives = tuple(Objective(**each) for each in about.get("objectives", ()))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"The card of the focus model {name} is not readable ({error}).") from error
        if sha256 != self.sha256:
            raise ConfigError(
                f"The focus model {name} is not the one its card describes: its checksum differs.",
                "Install it again, or train a new one with its card.",
            )
        return ModelFile(self.data, sha256, scale, objectives)


class OnnxFocusModel:
    """The network, loaded, checked and warmed up; one thread calls it.

    Parameters
    ----------
    config : Config
        `focus.model`, `focus.providers`, `focus.strict_providers`, `focus.fp16`, `focus.engine_cache`.

    Raises
    ------
    ConfigError
        No onnxruntime, no readable network, a network of another shape, or, where `focus.strict_providers` is set,
        a provider other than the first one asked for.
    """

    def __init__(self, config: Config) -> None:
        self.file = ModelFile.open(config.focus.model)
        ort = _onnxruntime()
        wanted = config.focus.providers
        offered: list[str] = [name for name in wanted if NAMES[name] in ort.get_available_providers()]
        if "cpu" not in offered and not config.focus.strict_providers:
            offered.append("cpu")
        if config.focus.strict_providers and offered[:1] != list(wanted[:1]):
            raise _not_strict(wanted[0], ort.get_available_providers())
        self._session = self._start(ort, config, offered)
        short = {long: name for name, long in NAMES.items()}
        actual = tuple(short.get(name, name) for name in self._session.get_providers())
        self.providers = Providers(tuple(wanted), actual)
        if config.focus.strict_providers and self.providers.degraded:
            raise _not_strict(wanted[0], self._session.get_providers())
        self._check_shape()
        self._warm_up()

    def __call__(self, patches: Patches) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Judge patches.

        Parameters
        ----------
        patches : ndarray, (n, 3, 256, 256), float32

        Returns
        -------
        dz_um, sigma_um : ndarray, (n,)
            Signed defocus, positive where the stage is above focus, and its standard deviation, in micrometres of
            the reference objective (`samples.reference_unit`). Not finite where the network gave no number.
        """
        found = []
        for start in range(0, len(patches), BATCH):
            part = patches[start : start + BATCH]
            fed = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), axis=0)]) if len(part) < BATCH else part
            dz_um, sigma_um = self._session.run(["dz_um", "sigma_um"], {"patches": fed})
            found.append(np.stack([dz_um, sigma_um])[:, : len(part)])
        both = np.concatenate(found, axis=1).astype(np.float64) if found else np.empty((2, 0))
        return both[0], both[1]

    def _start(self, ort: Any, config: Config, names: Sequence[str]) -> Any:
        """Start a session; a compiled engine that cannot be used any more is deleted and built anew, once."""
        cache = _cache_folder(ort, config, self.file.sha256)
        try:
            return self._session_of(ort, config, names, cache)
        except ConfigError:
            if "tensorrt" not in names or not cache.exists():
                raise
            shutil.rmtree(cache, ignore_errors=True)
            return self._session_of(ort, config, names, cache)

    def _session_of(self, ort: Any, config: Config, names: Sequence[str], cache: Path) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        tensorrt = {
            "trt_fp16_enable": config.focus.fp16,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(cache),
        }
        if "tensorrt" in names:
            cache.mkdir(parents=True, exist_ok=True)
        providers = [(NAMES[name], tensorrt if name == "tensorrt" else {}) for name in names]
        try:
            session = ort.InferenceSession(self.file.data, options, providers=providers)
        except Exception as error:  # onnxruntime raises many kinds
            cause = str(error).splitlines()[0][:200]
            raise ConfigError(f"The focus model cannot be loaded ({cause}).", "Check focus.model.") from error
        session.disable_fallback()
        return session

    def _check_shape(self) -> None:
        inputs = {i.name: (i.type, list(i.shape)[1:]) for i in self._session.get_inputs()}
        outputs = {o.name for o in self._session.get_outputs()}
        wanted = {"patches": ("tensor(float)", [3, PATCH_PX, PATCH_PX])}
        if inputs != wanted or not {"dz_um", "sigma_um"} <= outputs:
            raise ConfigError(
                f"The ONNX file is not a focus model: it takes {inputs} and gives {sorted(outputs)}.",
                f"A focus model takes {wanted} and gives dz_um and sigma_um.",
            )

    def _warm_up(self) -> None:
        """Run twice, so that memory is laid out and engines are built before the first tile."""
        for _ in range(2):
            self(np.full((BATCH, 3, PATCH_PX, PATCH_PX), 0.5, np.float32))


def engine_bytes(providers: Sequence[str]) -> int:
    """Return about how much memory the network takes on the best of these providers that can run here; 0: none can."""
    try:
        offered = _onnxruntime().get_available_providers()
    except (ConfigError, AttributeError):  # a half overwritten package lacks its functions
        return 0
    return max(NEEDS_MB[name] for name in ("cpu", *providers) if NAMES[name] in offered) << 20


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(
            "focus.mode is model, but onnxruntime is not installed.",
            'Install the extra [cpu] (or [gpu]), or set focus.mode = "classical".',
        ) from error


def _not_strict(wanted: str, actual: list[str]) -> ConfigError:
    return ConfigError(
        f"focus.providers asks for {wanted} first, but there is only {', '.join(actual)}.",
        "Install that provider, or set focus.strict_providers = false.",
    )


def _cache_folder(ort: Any, config: Config, sha256: str) -> Path:
    """Return the folder of compiled engines; its name tells everything that makes an engine unfit elsewhere."""
    key = hashlib.sha256(f"{sha256} {ort.__version__} {ort.get_build_info()} {config.focus.fp16}".encode())
    for about in (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release")):
        if about.is_file():
            key.update(about.read_bytes())
    root = Path(config.focus.engine_cache or Path(config.storage.root) / ".engines")
    return root / key.hexdigest()[:16]
