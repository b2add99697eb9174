"""Lets an operator's own code see images before the network, and label maps after it.

A hook is a class in a package of its own, named by an entry point of the group `fcn.hooks`, and
`FCN_HOOKS` says which are run; docs/hooks.md shows one. Without that setting nothing of this runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol

import numpy as np

from model.contract import ClassInfo, Contract
from service.core.images.scale import averaged
from service.core.types import UInt8Array
from service.errors import HookFailed, StartError

GROUP: Final = "fcn.hooks"
_VOID: Final = 255
_log = logging.getLogger("fcn.hooks")


@dataclass(frozen=True, slots=True)
class HookContext:
    """Says whose image it is. classes: what the ids of the label map mean, besides 255, void.

    request_id: as answers and log lines have it; "" where there is no request.
    """

    model: str
    version: str
    classes: tuple[ClassInfo, ...]
    request_id: str


class Hook:
    """Does nothing: derive from it, and write those of its methods that are wanted.

    One object is made for each entry of `FCN_HOOKS` and called from several threads at a time. An
    array that it is given is its own: it may change it, or return another of the same shape.
    """

    def before(self, image: UInt8Array, context: HookContext) -> UInt8Array:
        """Takes the upload, upright, in its own size, uint8 RGB [H,W,3], and returns what the
        network and the outputs are to see in its place."""
        return image

    def after(self, label_map: UInt8Array, context: HookContext) -> UInt8Array:
        """Takes class ids of the upload's size, uint8 [H,W], and returns those of the answer."""
        return label_map

    def palette(self, palette: UInt8Array, context: HookContext) -> UInt8Array:
        """Takes the colours of the classes, uint8 RGB [256,3], once for each version of a model,
        and returns those in which images of the answer are drawn."""
        return palette


class Served(Protocol):
    """Has what is told of a version of a model."""

    name: str
    version: str

    @property
    def contract(self) -> Contract: ...


def context_of(model: Served, request_id: str = "") -> HookContext:
    return HookContext(model.name, model.version, model.contract.classes, request_id)


Step = Callable[[UInt8Array, HookContext], UInt8Array]
Pixels = Callable[[int], tuple[UInt8Array, tuple[int, int]]]
"""See `service.core.images.decode.Pixels`."""


class Hooks:
    """Holds the hooks that run, in their order."""

    def __init__(self, hooks: Sequence[tuple[str, Hook]]) -> None:
        """hooks: each with its name."""
        self._palette = _written(hooks, "palette")
        self.before = _written(hooks, "before")
        self.after = _written(hooks, "after")

    def of(self, model: Served, request_id: str) -> RequestHooks:
        return RequestHooks(self, context_of(model, request_id))

    def palette(self, model: Served) -> UInt8Array:
        """Returns the palette of a model that was loaded. Raises: HookFailed."""
        return _run(self._palette, model.contract.palette(), context_of(model))


class RequestHooks:
    """Runs the hooks for one request, on threads of the pool."""

    __slots__ = ("_context", "_hooks", "_kept")

    def __init__(self, hooks: Hooks, context: HookContext) -> None:
        self._hooks = hooks
        self._context = context
        self._kept: tuple[UInt8Array, tuple[int, int]] | None = None

    @property
    def reads_image(self) -> bool:
        return bool(self._hooks.before)

    @property
    def changes_labels(self) -> bool:
        return bool(self._hooks.after)

    def pixels(self, pixels: Pixels, *, keep: bool) -> Pixels:
        """Makes pixels that have been through the hooks, which see all of them.

        keep: whether they are asked for twice. Raises, when called: HookFailed.
        """
        if not self.reads_image:
            return pixels

        def hooked(reduction: int) -> tuple[UInt8Array, tuple[int, int]]:
            found = self._kept
            if found is None:
                rgb, size = pixels(1)
                found = _run(self._hooks.before, rgb, self._context), size
                self._kept = found if keep else None
            rgb, size = found
            return (rgb if reduction == 1 else averaged(rgb, reduction)), size

        return hooked

    def after(self, label_map: UInt8Array) -> UInt8Array:
        """Raises: HookFailed."""
        if not self.changes_labels:
            return label_map
        made = _run(self._hooks.after, label_map, self._context)
        known = np.zeros(256, bool)
        known[[info.id for info in self._context.classes]] = known[_VOID] = True
        if not known[made].all():
            wrong = int(made[~known[made]][0])
            name = ", ".join(name for name, _ in self._hooks.after)
            _log.error("hook %s: there is no class %d in %s", name, wrong, self._context.model)
            raise HookFailed(name)
        return made


def load_hooks(names: str) -> Hooks | None:
    """Finds and makes the hooks of these names, which have commas between them; None for none.

    Raises: StartError.
    """
    found = [(name, _made(name)) for name in names.split(",") if name]
    return Hooks(found) if found else None


def _made(name: str) -> Hook:
    """Raises: StartError."""
    known = entry_points(group=GROUP)
    offered = [point for point in known if point.name == name]
    if not offered:
        there = ", ".join(sorted(known.names)) or "none"
        raise StartError(
            f"FCN_HOOKS names {name!r}, and no package that is installed here has such an entry "
            f"point in the group {GROUP}: install one, or choose of those there are: {there}"
        )
    if len(offered) > 1:
        whose = " and ".join(_package(point) for point in offered)
        raise StartError(f"FCN_HOOKS names {name!r}, which is a hook of {whose}: remove one")
    try:
        hook = offered[0].load()()
    except Exception as error:
        raise StartError(
            f"the hook {name!r} of {_package(offered[0])} cannot be made: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(hook, Hook):
        raise StartError(
            f"the hook {name!r} of {_package(offered[0])} is no service.hooks.Hook: derive its "
            "class from that"
        )
    return hook


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _written(hooks: Sequence[tuple[str, Hook]], method: str) -> list[tuple[str, Step]]:
    """Lists those whose class has this method of its own: the others cost nothing."""
    return [
        (name, getattr(hook, method))
        for name, hook in hooks
        if getattr(type(hook), method) is not getattr(Hook, method)
    ]


def _run(steps: Sequence[tuple[str, Step]], array: UInt8Array, context: HookContext) -> UInt8Array:
    """Gives each what the one before it made. Raises: HookFailed."""
    array = array.copy()  # the upload's pixels, and what an engine keeps, are not to be written to
    for name, step in steps:
        try:
            made = step(array, context)
        except BaseException as error:  # a hook that leaves by sys.exit() does not end the server
            _log.error("hook %s failed, request %s", name, context.request_id, exc_info=error)
            raise HookFailed(name) from None
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape != array.shape:
            is_array = isinstance(made, np.ndarray)
            what = f"{made.dtype} {list(made.shape)}" if is_array else type(made).__name__
            _log.error("hook %s made %s of uint8 %s", name, what, list(array.shape))
            raise HookFailed(name)
        array = np.ascontiguousarray(made)
    return array
