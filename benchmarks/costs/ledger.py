"""The book of a piece of code, whatever the clock says: operator calls, words moved, memory."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Ledger(TorchDispatchMode):
    """Keeps the book of every operator call inside it.

    Attributes:
        calls: Their names, in order.
        launches: How many do work, which views and the marks of the profiler do not.
        words: Elements that they read and wrote.
        peak_bytes: Most bytes that they had allocated and not yet given back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.launches = 0
        self.words = 0
        self.peak_bytes = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._most_living = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        result = func(*args, **(kwargs or {}))
        self.calls.append(schema.name)
        if any(value.alias_info and not value.is_write for value in schema.returns):
            return result  # A view.
        self.launches += not schema.name.startswith("profiler::")
        for argument, value in zip(schema.arguments, args, strict=False):
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            # A copy does not read what it writes over; all else that works in place does.
            is_read = not (is_written and "copy_" in schema.name)
            self.words += (is_read + is_written) * sum(t.numel() for t in _tensors(value))
        if not schema.is_mutable:
            for made in _tensors(result):
                storage = made.untyped_storage()
                self.words += made.numel()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._most_living += storage.nbytes()
            # To ask each storage whether it lives takes long.
            if self._most_living > self.peak_bytes:
                self._most_living = self.living_bytes
                self.peak_bytes = max(self.peak_bytes, self._most_living)
        return result

    @property
    def host_reads(self) -> int:
        """How many calls bring a value back to the host, which has to wait for it."""
        return self.calls.count("aten::_local_scalar_dense")

    @property
    def living_bytes(self) -> int:
        """Bytes that were allocated inside and are still in use."""
        self._storages = {
            key: (storage, size)
            for key, (storage, size) in self._storages.items()
            if not storage.expired()
        }
        return sum(size for _, size in self._storages.values())


def _tensors(value: object) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, Tensor)]
