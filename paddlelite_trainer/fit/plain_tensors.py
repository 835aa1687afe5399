"""PlainTensors: a module's Tensors that are in no state_dict, of which training changes some; and its lists."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import paddle

if TYPE_CHECKING:
    from ..module import Module

_COLLECTIONS = (list, dict, set, deque)


class PlainTensors:
    """Tensors that are attributes of a layer without being parameters or saved buffers.

    Paddle keeps them as buffers that are not persistable. Masks and tables stay as they are, and are made again by the
    module; what a step has changed, a running mean or a recurrent state, belongs into the checkpoint.
    """

    def __init__(self) -> None:
        self._watched: dict[str, tuple[Any, str, Any, int]] = {}
        """{name: (layer, attribute, Tensor as it was found, its version)}"""
        self._changed: set[str] = set()
        self._collections: dict[str, tuple[Any, str, int]] = {}
        """Lists, dicts, sets and deques: {name: (layer, attribute, entries when it was found)}"""

    def watch(self, module: Module) -> None:
        """From here on another object, or another version of it, is a change."""
        held = module.state_dict()
        layers = dict(module.named_sublayers(include_self=True))
        for name, value in module.named_buffers():
            owner, _, attribute = name.rpartition(".")
            if name not in held and owner in layers:
                self._watched[name] = (layers[owner], attribute, value, value.inplace_version)

        from ..module import Module as Bare

        own = set(vars(Bare()))  # the framework's
        for path, layer in layers.items():
            for attribute, value in vars(layer).items():
                if attribute not in own and type(value) in _COLLECTIONS:
                    name = f"{path}.{attribute}" if path else attribute
                    self._collections[name] = layer, attribute, len(value)

    def filled(self) -> dict[str, int]:
        """{name: entries} of the lists and their like that have other entries than they had, which nobody saves."""
        now: dict[str, Any] = {
            name: getattr(layer, attribute, None) for name, (layer, attribute, _) in self._collections.items()
        }
        return {
            name: len(value)
            for name, value in now.items()
            if type(value) in _COLLECTIONS and len(value) != self._collections[name][2]
        }

    def lost(self, filled: Mapping[str, int]) -> list[str]:
        """Sentences about those that have fewer entries now than `filled` told when the checkpoint was made."""
        told = []
        for name, entries in filled.items():
            layer, attribute, _ = self._collections.get(name, (None, "", 0))
            value: Any = getattr(layer, attribute, None)
            if type(value) in _COLLECTIONS and len(value) < entries:
                told.append(
                    f"{name}: a {type(value).__name__} of the module that had {entries} entries is not in the "
                    f"checkpoint, and has {len(value)} now. Keep it by on_save_checkpoint and on_load_checkpoint, or "
                    "as a buffer."
                )
        return told

    def changed(self) -> dict[str, Any]:
        """{name: copy} of those that are not as they were found."""
        values = {}
        for name, (layer, attribute, found, version) in self._watched.items():
            now: Any = getattr(layer, attribute, None)
            if now is not found or now.inplace_version != version:
                self._changed.add(name)
            if name in self._changed and isinstance(now, paddle.Tensor):
                values[name] = now.detach().clone()
        return values

    def put_back(self, values: Mapping[str, Any]) -> None:
        """Let the attributes be what `changed` gave; what the module no longer has is left out."""
        for name, value in values.items():
            if name in self._watched:
                layer, attribute, _, _ = self._watched[name]
                setattr(layer, attribute, value.clone())
                self._changed.add(name)

    snapshot, restore = changed, put_back
