"""Tiles through a model, and their outputs blended as they come: a weighted gather that holds strips only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.seamless.plan import Axis, Plan

Values = NDArray[np.float32]

Read = Callable[[int, int, int, int], NDArray[Any]]
"""`read(y0, y1, x0, x1) -> (y, x[, c])`."""

Model = Callable[[NDArray[Any]], Any]
"""`model((n, y, x[, c])) -> (n, y, x, k)`: logits, probabilities or regressed values, or a future of them."""

Write = Callable[[int, int, NDArray[Any]], object]
"""`write(y0, x0, block)` with a finished (y, x, k) block, float32."""

_READERS = 4


class ModelError(ScannerError):
    """A model does not give what tiles need."""

    code = "bad_argument"


def run(plan: Plan, model: Model, read: Read, write: Write, *, batch: int = 1, prefetch: int = 0) -> None:
    """Apply a model to a whole image by overlapping tiles and blend its outputs.

    Memory bound: `plan.held_fraction` of the image's pixels for each of the k outputs (and one more with a mask), the
    tiles of a batch with their outputs, and `prefetch` tiles.

    Parameters
    ----------
    plan : Plan
    model : callable
    read : callable
        Called once a tile; from threads if `prefetch` is above 0.
    write : callable
        Called once for every pixel that a tile covers.
    batch : int
        Tiles that the model gets at a time.
    prefetch : int
        Tiles read ahead by threads, and asked of a model that answers with futures.

    Raises
    ------
    ModelError
        The model's output does not fit its input.
    UsageError
        A batch below one or a prefetch below zero.
    """
    if batch < 1 or prefetch < 0:
        raise UsageError(f"A batch of {batch} with {prefetch} tiles ahead cannot be.", "Use 1 and 0, or more.")
    outputs = _outputs(model, _tiles(plan, read, prefetch), batch, prefetch)
    strips: _Strips | None = None
    waiting: list[tuple[int, int]] = []
    for cell in plan.cells:
        output = next(outputs) if plan.kept(*cell) else None
        if strips is None and output is not None:
            strips = _Strips(plan, output.shape[2], write)
            for row, col in waiting:
                strips.take(row, col, None)
        if strips is None:
            waiting.append(cell)
        else:
            strips.take(*cell, output)


def _tiles(plan: Plan, read: Read, prefetch: int) -> Iterator[NDArray[Any]]:
    boxes = (plan.box(*cell) for cell in plan.cells if plan.kept(*cell))
    if prefetch == 0:
        yield from (read(b.y0, b.y1, b.x0, b.x1) for b in boxes)
        return
    with ThreadPoolExecutor(min(prefetch, _READERS), "seamless-read") as pool:
        ahead: deque[Future[NDArray[Any]]] = deque()
        try:
            for box in boxes:
                ahead.append(pool.submit(read, box.y0, box.y1, box.x0, box.x1))
                if len(ahead) > prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _outputs(model: Model, tiles: Iterator[NDArray[Any]], batch: int, ahead: int) -> Iterator[NDArray[Any]]:
    """Yield the output of every tile; a model that answers with futures is asked some batches ahead."""
    asked: deque[tuple[tuple[int, ...], Any]] = deque()
    outputs = 0
    while True:
        group = list(islice(tiles, batch))
        if group:
            if any(other.shape != group[0].shape for other in group):
                raise ModelError("The tiles that were read are not of one shape.", "Check `read`.")
            stacked = group[0][None] if len(group) == 1 else np.stack(group)
            asked.append((stacked.shape, model(stacked)))
        if not asked:
            return
        if group and hasattr(asked[-1][1], "result") and len(asked) <= ahead // batch:
            continue
        shape, answer = asked.popleft()
        made = np.asarray(answer.result() if hasattr(answer, "result") else answer)
        if made.ndim != 4 or made.shape[:3] != shape[:3] or outputs not in (0, made.shape[3]):
            raise ModelError(
                f"The model gives {made.shape} for tiles of {shape}.", "It must give (n, y, x, k) for (n, y, x, c)."
            )
        outputs = made.shape[3]
        yield from made


class _Strips:
    """The sums that are not finished yet.

    Named by the order of work: `across` is the axis along a line of tiles, `along` that from line to line. With
    skipped tiles the weights are summed as one more output, and divided out at the end.
    """

    def __init__(self, plan: Plan, outputs: int, write: Write) -> None:
        self._plan, self._write = plan, write
        self._along, self._across = (plan.cols, plan.rows) if plan.by_columns else (plan.rows, plan.cols)
        self._masked = plan.keep is not None
        self._k = outputs + self._masked
        self._below = np.zeros((self._along.fade, self._across.length, self._k), np.float32)
        self._side = np.zeros((0, 0, self._k), np.float32)
        self._weights: dict[tuple[bool, int], Values] = {}

    def take(self, row: int, col: int, output: NDArray[Any] | None) -> None:
        """Add a tile's output, None for a skipped one, and write what is finished by it."""
        line, at = (col, row) if self._plan.by_columns else (row, col)
        (top, bottom), left = self._along.used(line), self._across.used(at)[0]
        sums = self._weighted(line, at, output)
        if at > 0:
            sums[:, : self._side.shape[1]] += self._side
        done = self._across.finished(at) - left
        self._side = sums[:, done:].copy()
        column, place = sums[:, :done], slice(left, left + done)
        if line > 0:
            above = self._along.used(line - 1)[1] - top
            column[:above] += self._below[:above, place]
        ready = self._along.finished(line) - top
        self._below[: bottom - top - ready, place] = column[ready:]
        if self._plan.written(row, col):
            self._emit(top, left, column[:ready])

    def _weighted(self, line: int, at: int, output: NDArray[Any] | None) -> Values:
        (top, bottom), (left, right) = self._along.used(line), self._across.used(at)
        shape = (bottom - top, right - left, self._k)
        if output is None:
            return np.zeros(shape, np.float32)
        if self._plan.by_columns:
            output = output.swapaxes(0, 1)
        y, x = self._along.start(line), self._across.start(at)
        part = output[top - y : bottom - y, left - x : right - x]
        down, right_weights = self._axis(self._along, line), self._axis(self._across, at)
        sums = np.empty(shape, np.float32)  # anew for each tile: what is finished is handed on without a copy
        np.multiply(part, down[:, None, None], out=sums[..., : part.shape[2]], casting="same_kind")
        if self._masked:
            sums[..., -1] = down[:, None]
        flat, fade = sums.reshape(shape[0], -1), self._across.fade * self._k
        if 2 * fade < flat.shape[1]:  # the middle weighs one
            flat[:, :fade] *= right_weights[:fade]
            flat[:, flat.shape[1] - fade :] *= right_weights[flat.shape[1] - fade :]
        else:
            flat *= right_weights
        return sums

    def _axis(self, axis: Axis, k: int) -> Values:
        """Return the weights of tile k where it has any; across, once for each output."""
        across = axis is self._across
        kind = 0 if k == 0 else 2 if k == axis.count - 1 else 1
        key = (across, kind)
        if key not in self._weights:
            first, end = (v - axis.start(k) for v in axis.used(k))
            weights = axis.weights(k)[first:end]
            self._weights[key] = np.repeat(weights, self._k) if across else weights
        return self._weights[key]

    def _emit(self, top: int, left: int, sums: Values) -> None:
        if self._masked:
            weight = sums[..., -1:]
            sums = np.divide(sums[..., :-1], weight, out=np.zeros_like(sums[..., :-1]), where=weight > 0)
        if self._plan.by_columns:
            self._write(left, top, sums.swapaxes(0, 1))
        else:
            self._write(top, left, sums)
