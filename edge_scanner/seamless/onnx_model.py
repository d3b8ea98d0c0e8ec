"""Any ONNX network that turns an image tile into a tile of outputs, in ONNX Runtime."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import ConfigError, SourceError
from edge_scanner.seamless.run import ModelError

LARGEST_MB = 2000
_CHANNELS = (1, 3, 4)
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxModel:
    """A network, `(n, y, x, c)` pixels in, `(n, y, x, k)` outputs out. Pickled without its session.

    Its input is (n, c, y, x) or (n, y, x, c), of floats (pixels divided by the largest value of their type) or of the
    pixels' own type; its output has the input's size in y and x. Metadata of the file that are used: `classes`, a JSON
    list of names; `output`, `probabilities` where outputs are not logits; `pixel_size_um`, for which it was trained;
    `overlap_px`, that it needs.

    Parameters
    ----------
    path : Path
    threads : int
        Of the CPU provider; 0 lets ONNX Runtime choose.

    Raises
    ------
    SourceError
        The file is missing or is not a network.
    ModelError
        A network of another kind.
    ConfigError
        No onnxruntime.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            if path.stat().st_size > LARGEST_MB << 20:
                raise SourceError(f"The model {path.name} is larger than {LARGEST_MB} MB.")
            self._data = path.read_bytes()
        except OSError as error:
            raise SourceError(f"The model {path} cannot be read ({error.strerror}).", "Check the path.") from error
        self._name, self._threads = path.name, threads
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": self._data, "_name": self._name, "_threads": self._threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        try:
            ort: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise ConfigError(
                "onnxruntime is not installed.", "Install edge-scanner[cpu] or edge-scanner[gpu]."
            ) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4
        wanted = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
        offered = [name for name in wanted if name in ort.get_available_providers()]
        try:
            self._session = ort.InferenceSession(self._data, options, providers=offered)
        except Exception as error:
            raise SourceError(f"{self._name} is not an ONNX network ({_first(error)}).", "Check the file.") from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._check()

    def _check(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [list(v.shape or ()) for v in (*inputs, *outputs[:1])]
        if len(inputs) != 1 or [len(shape) for shape in shapes] != [4, 4]:
            raise ModelError(
                f"The model {self._name} has inputs and outputs of shapes {shapes}.",
                "It must take one (n, c, y, x) or (n, y, x, c) and give the like.",
            )
        taken, given = shapes
        self._channels_first = taken[1] in _CHANNELS and not (taken[3] in _CHANNELS and taken[1] not in (1, 3))
        if not self._channels_first and taken[3] not in _CHANNELS:
            raise ModelError(f"The model {self._name} takes {taken}.", "It must take images of 1, 3 or 4 channels.")
        self.channels: int = taken[1] if self._channels_first else taken[3]
        sides = taken[2:] if self._channels_first else taken[1:3]
        whole = [side if isinstance(side, int) and side > 0 else None for side in sides]
        self.tile: tuple[int | None, int | None] = (whole[0], whole[1])
        self.batch: int | None = taken[0] if isinstance(taken[0], int) and taken[0] > 0 else None
        self._input, self._kind = inputs[0].name, str(inputs[0].type)
        about = self._session.get_modelmeta().custom_metadata_map
        self.gives_probabilities = about.get("output") == "probabilities"
        self.threshold = 0.5 if self.gives_probabilities else 0.0
        self.classes = _classes(about.get("classes", ""))
        self.pixel_size_um = _positive(about.get("pixel_size_um", ""))
        self.overlap_px = int(_positive(about.get("overlap_px", "")) or 0)
        outputs_last = given[1] if self._channels_first else given[3]
        self.outputs: int | None = outputs_last if isinstance(outputs_last, int) else None

    def __call__(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """Apply the network.

        Parameters
        ----------
        tiles : ndarray, (n, y, x, c)

        Returns
        -------
        ndarray, (n, y, x, k)

        Raises
        ------
        ModelError
            The tiles do not fit, or the outputs are of another size.
        """
        if tiles.shape[3] != self.channels:
            raise ModelError(
                f"The model {self._name} takes {self.channels} channels; the slide has {tiles.shape[3]}.",
                "Use another model.",
            )
        size = self.batch or len(tiles)
        done = [self._run(tiles[k : k + size], size) for k in range(0, len(tiles), size)]
        return done[0] if len(done) == 1 else np.concatenate(done)

    def probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs, (y, x, k), as probabilities: of each class, or of the one that there is."""
        if self.gives_probabilities:
            return outputs.clip(0, 1)
        if outputs.shape[-1] == 1:
            likely: NDArray[np.float32] = 1 / (1 + np.exp(-outputs.clip(-80, 80)))
            return likely
        raised = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        shares: NDArray[np.float32] = raised / raised.sum(axis=-1, keepdims=True)
        return shares

    def _run(self, tiles: NDArray[Any], size: int) -> NDArray[Any]:
        count, height, width = tiles.shape[:3]
        grow = [(0, size - count)] + [(0, (side or n) - n) for side, n in zip(self.tile, (height, width), strict=True)]
        if min(more for _, more in grow) < 0:
            raise ModelError(f"The model {self._name} takes tiles of {self.tile} px, not {height} x {width}.")
        fed = np.pad(tiles, [*grow, (0, 0)], mode="edge") if any(more for _, more in grow) else tiles
        if self._kind in _FLOATS:
            top = np.iinfo(fed.dtype).max if fed.dtype.kind in "ui" else 1
            fed = np.multiply(fed, 1 / top, dtype=np.float32).astype(_FLOATS[self._kind], copy=False)
        if self._channels_first:
            fed = np.ascontiguousarray(fed.transpose(0, 3, 1, 2))
        try:
            (made,) = self._session.run([self._session.get_outputs()[0].name], {self._input: fed})
        except Exception as error:
            raise ModelError(f"The model {self._name} cannot take these tiles ({_first(error)}).") from error
        made = np.asarray(made)
        if self._channels_first:
            made = made.transpose(0, 2, 3, 1)
        if made.shape[:3] != (
            fed.shape[0],
            fed.shape[2 if self._channels_first else 1],
            fed.shape[-1 if self._channels_first else 2],
        ):
            raise ModelError(
                f"The model {self._name} gives {made.shape} for {height} x {width} px.", "Sizes must agree."
            )
        return made[:count, :height, :width].astype(np.float32, copy=False)


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _classes(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text) if text else []
    except ValueError:
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
