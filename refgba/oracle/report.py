"""What a comparison ends with: a report, and in it the first quantity that deviates, for a person or for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from refgba.oracle.stepwise import QUANTITIES

SHOWN: dict[str, type[float] | type[int] | type[bool]] = {"f": float, "i": int, "b": bool}  # how an entry is printed


@dataclass(frozen=True)
class Deviation:
    """The first quantity that is not as it should be.

    index: of the entry that is off by most.  expected, got: that entry; expected is None where there should be nothing.
    allowed: by how much it may be off.  off, entries: how many entries are off, and how many there are.
    causes: known mistakes that give the candidate's numbers; none: no mistake does.  needs: what the quantity is
    computed from, "W before" for the state that the step found.  unseen: those of them that the candidate lacks.
    """

    name: str
    step: int
    index: list[int]
    expected: float | None
    got: float
    allowed: float
    off: int
    entries: int
    causes: list[str]
    needs: list[str]
    unseen: list[str]

    def __str__(self) -> str:
        """In a few lines, for a person."""
        lines = [f"step {self.step}: {self.name} deviates  ({QUANTITIES[self.name].line})", *self._entry()]
        if self.causes:
            lines += [f"  likely cause: {cause}" for cause in self.causes]
        else:
            lines.append("  no known mistake gives these numbers")
        if self.needs:
            lines.append(f"  computed from: {', '.join(self.needs)}")
        if self.unseen:
            lines.append(f"  of these not in the dump, so not checked: {', '.join(self.unseen)}")
        return "\n".join(lines)

    def _entry(self) -> list[str]:
        """The entry that is off by most, and by how much."""
        if self.expected is None:
            return [f"  there should be no {self.name} at this step"]
        kind = QUANTITIES[self.name].kind
        show = SHOWN[kind]
        where = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        off = f"off by {abs(self.got - self.expected):.3g}, where {self.allowed:.3g} is allowed"
        others = f"; so are {self.off} of {self.entries} entries" if self.entries > 1 else ""
        return [
            f"  {self.name}{where} should be {show(self.expected)!r}, is {show(self.got)!r}",
            f"  {off if kind == 'f' else 'it has to be equal'}{others}",
        ]


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    compared: how many quantities agree.  steps: those they are of.  flips: (step, row, neuron) of gates that differ
    where y is within its tolerance of 0, which is no deviation.  nearest: of the quantities that agree, the one nearest
    to its bound: the share of the bound that it is off by, its step and name.
    """

    compared: int
    steps: list[int]
    tolerance: float
    flips: list[tuple[int, int, int]]
    nearest: tuple[float, int, str]
    deviation: Deviation | None

    @property
    def agrees(self) -> bool:
        """Whether nothing deviates."""
        return self.deviation is None

    def __str__(self) -> str:
        """In a few lines, for a person."""
        share, t, name = self.nearest
        lines = [str(self.deviation)] if self.deviation else []
        of = "before it" if self.deviation else f"of {len(self.steps)} steps"
        agree = f"{self.compared} quantities {of} agree to {self.tolerance:g} of their size"
        lines.append(agree + (f"; the nearest to its bound is {name} at step {t}, {share:.2g} of it" if share else ""))
        if self.flips:
            shown = ", ".join(f"step {t} [{row}, {m}]" for t, row, m in self.flips[:5])
            lines.append(f"{len(self.flips)} gates flipped where y is within rounding of 0: {shown}")
        return "\n".join(lines)
