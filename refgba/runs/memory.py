"""A run in memory: trained as any other, with nothing written unless that is asked for.

`MemoryRun` trains, and its `Record` makes a folder of it later, which is then a run as any other (`folder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgba.backends import begin
from refgba.backends.base import AnyConfig, HostState
from refgba.data.activations import Activations
from refgba.data.centre import Centring, centred
from refgba.data.memory import forgotten
from refgba.data.survey import survey
from refgba.errors import unwritten
from refgba.runs import checkpoints, folder
from refgba.runs.launch import Choices
from refgba.runs.log import Log, Progress
from refgba.runs.trainer import Training, described


@dataclass(frozen=True)
class Record:
    """What a trained run tells of itself beside its state; all of it is small.

    about: as in about.json.  data: the rows, without those that were in memory.  keep: of checkpoints.  origin: of the
    network, for its state.json.  lines: the log.
    """

    config: AnyConfig
    about: dict[str, Any]
    data: Activations
    keep: int
    origin: dict[str, Any]
    lines: tuple[Progress, ...]

    def write(self, out: Path, state: HostState) -> None:
        """Make the run's folder, with the state after its last step as a checkpoint; InputError if that cannot be."""
        folder.create(out, self.config, self.about, self.data)
        try:
            with folder.locked(out):
                with closing(Log(out)) as lines:
                    for progress in self.lines:
                        lines.append(progress)
                    lines.sync()
                checkpoints.save(out, state, self.origin, self.keep, self.data.centre)
                origin = {"step": state.t} | self.origin
                folder.write_network(out / folder.FINAL, state.params, self.config, origin, centre=self.data.centre)
        except OSError as error:
            raise unwritten(out, error) from None


class MemoryRun:
    """A run without a folder, on rows of a file or of an array.

    state: that of the backend, which training moves.
    """

    def __init__(
        self,
        data: Activations,
        choices: Choices,
        drop_zero_rows: bool = False,
        tick: Callable[[int], object] = id,
        centring: Centring = "auto",
    ) -> None:
        """Read and check all rows; InputError as `survey`, and as `begin` of the backend."""
        config, saving, backend, names = choices
        data, location = centred(data, centring)
        data, surveyed = survey(data, config.master, drop_zero_rows, tick, location=location)
        self.state = begin(backend, config, data.d)
        about = described(data, surveyed, names, saving)
        self._training = Training(None, config, about, data, backend, saving, int)
        self._lines: list[Progress] = []

    def steps(self) -> Iterator[Progress]:
        """Train to the end, as `refgba.runs.trainer.train_run` and with the same numbers; yields as it does."""
        for progress in self._training.run(self.state):
            self._lines.append(progress)
            yield progress

    def record(self) -> Record:
        """What the trained run tells of itself."""
        run, lines = self._training, tuple(self._lines)
        origin = run.origin() | {"seconds": lines[-1].seconds}
        return Record(run.config, run.about, forgotten(run.data), run.saving.keep, origin, lines)
