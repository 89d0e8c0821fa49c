"""A network that was trained here, on the backend that computes its codes."""

from __future__ import annotations

from typing import Any

from refgba import backends
from refgba.backends.base import AnyConfig, AnyParams, Backend, HostState
from refgba.baselines import METHODS
from refgba.data.unit_rows import prepared
from refgba.types import Array, Float64


class Network:
    """Parameters and settings, and a backend by name, which is loaded when it is first needed.

    It codes rows as `refgba.runs.judging.Dictionary` asks, and can be pickled: then with the state of its training, if
    it has that.
    """

    def __init__(
        self, name: str, config: AnyConfig, params: AnyParams, state: Any = None, centre: Float64 | None = None
    ) -> None:
        """name: of the backend.  params: on the host.  state: the backend's after training, None if it is not known.

        centre: (d,) of the rows, None if nothing is subtracted from them.
        """
        self.name, self.config, self.params = name, config, params
        self.trained, self.centre = state is not None, centre
        self._state = state
        self._host: HostState | None = None

    def __getstate__(self) -> dict[str, Any]:
        host = self.host() if self.trained else None
        return vars(self) | {"_state": None, "_host": host}

    @property
    def backend(self) -> Backend:
        """The backend; InputError where it cannot run."""
        return backends.load_for(self.name, self.config)

    @property
    def state(self) -> Any:
        """The backend's state, made on first use."""
        if self._state is None:
            backend, host = self.backend, self._host
            self._state = backend.init(self.params, self.config) if host is None else backend.restore(host)
            self._host = None
        return self._state

    def host(self) -> HostState:
        """The whole state after training, on the host."""
        return self._host if self._host is not None else self.backend.export(self.state)

    # ---- `refgba.runs.judging.Dictionary`

    @property
    def W_enc(self) -> Array:
        """The encoder rows, (M, d)."""
        return self.params.W

    def prepare(self, x: Array, /) -> Array:
        """Rows (L, d) as the network sees them: less their centre, if any, at unit norm, in its dtype."""
        return prepared(x, self.config.master, self.centre)

    def encode(self, x: Array, /) -> tuple[Array, Array]:
        """Pre-activations and codes of prepared rows x (L, d), each (L, M)."""
        y, s = self.backend.encode(self.state, self.backend.put(self.state, x))
        return self.backend.get(y), self.backend.get(s)

    def decode(self, s: Array, /) -> Array:
        """Reconstructions (L, d) of codes s (L, M), on the host: codes come from there."""
        f: Array = METHODS[self.config.method].decode(self.params, s.astype(self.config.master, copy=False))
        return f
