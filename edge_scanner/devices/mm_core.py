"""Micro-Manager's core: the devices that a configuration file or a list of adapters loads, and their halt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymmcore

from edge_scanner.devices.clock import Clock
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.errors import DeviceError


class Core:
    """A Micro-Manager core and the devices that a source names; loaded while anybody uses it.

    Parameters
    ----------
    source : str
        A configuration file or a list of adapters.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.mm: Any = None
        self._users: set[object] = set()

    def acquire(self, user: object) -> Any:
        """Return the core, loaded.

        Raises
        ------
        DeviceError
            When Micro-Manager is not there or cannot load the devices.
        """
        if self.mm is None:
            folder = _adapters()
            if folder is None:
                raise DeviceError("Micro-Manager's adapters are not found.", "Set MICROMANAGER_PATH to their folder.")
            self.mm = pymmcore.CMMCore()
            try:
                self.mm.setDeviceAdapterSearchPaths([folder])
                with told(f"{self.source!r} cannot be loaded"):
                    self._load(self.mm)
            except BaseException:
                self._unload()
                raise
        self._users.add(user)
        return self.mm

    def release(self, user: object) -> None:
        """Unload the devices when nobody else uses them; safe to call twice."""
        self._users.discard(user)
        if not self._users:
            self._unload()

    def _unload(self) -> None:
        mm, self.mm = self.mm, None
        if mm is not None:
            with suppress(RuntimeError):  # a device that is gone
                mm.unloadAllDevices()

    def _load(self, mm: Any) -> None:
        if self.source.endswith(".cfg"):
            mm.loadSystemConfiguration(self.source)
            return
        hubs: dict[str, str] = {}
        for name in self.source.split(","):
            adapter, _, device = name.strip().partition("/")
            mm.loadDevice(device, adapter, device)
            if adapter in hubs:
                mm.setParentLabel(device, hubs[adapter])
            mm.initializeDevice(device)
            kind = mm.getDeviceType(device)
            if kind == pymmcore.HubDevice:
                hubs[adapter] = device
            elif kind == pymmcore.XYStageDevice:
                mm.setXYStageDevice(device)
            elif kind == pymmcore.StageDevice:
                mm.setFocusDevice(device)
            elif kind == pymmcore.CameraDevice:
                mm.setCameraDevice(device)


class CoreLine(SerialLine):
    """A core in the place of a serial line: the same latch, and a halt that is a call instead of bytes."""

    def __init__(self, core: Core, clock: Clock) -> None:
        super().__init__("", 0, clock)
        self.core = core

    @property
    def is_open(self) -> bool:
        """Whether the devices are loaded."""
        return self.core.mm is not None

    def open(self) -> None:
        """Load the devices."""
        self.core.acquire(self)

    def close(self) -> None:
        """Let the devices go."""
        self.core.release(self)

    def call(self, action: Callable[..., None], *arguments: object) -> None:
        """Do what may start a motion, unless halted: it cannot come after a halt. Raises what the action does."""
        with self._writing:
            self._check_halt()
            action(*arguments)

    def urgent(self, packet: bytes) -> None:  # noqa: ARG002
        """Halt every axis, one whatever the other says; waits at most for the call that is being made."""
        mm = self.core.mm
        if mm is None:
            raise DeviceError("Micro-Manager's devices are not loaded.", "Open the stage first.")
        failed = ""
        with self._writing:
            for label in (mm.getXYStageDevice(), mm.getFocusDevice()):
                try:
                    mm.stop(label)
                except RuntimeError as error:
                    failed = str(error)
        if failed:
            raise DeviceError(f"An axis does not halt ({failed}).", "Cut its power if it moves.")


def _adapters() -> str | None:
    """Return the folder of the adapters: MICROMANAGER_PATH, or where pymmcore-plus finds them."""
    if named_folder := os.environ.get("MICROMANAGER_PATH"):
        return named_folder
    from pymmcore_plus import find_micromanager  # only now: on import it opens a log file below the home folder

    found: str | None = find_micromanager()
    return found


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn Micro-Manager's errors into ours."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise DeviceError(f"{what} ({error}).", "Check the configuration of Micro-Manager.") from error


def named(mm: Any, label: str) -> str:
    """Return what a device is."""
    return f"Micro-Manager {mm.getDeviceLibrary(label)} {mm.getDeviceName(label)}"
