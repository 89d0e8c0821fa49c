"""What a comparison ends with: a report, and in it the first quantity that deviates, for a person or for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from refgba.oracle.stepwise import QUANTITIES

SHOWN: dict[str, type[float] | type[int] | type[bool]] = {"f": float, "i": int, "b": bool}  # how an entry is printed


@dataclass(frozen=True)
class Deviation:
    """The first quantity that is not as it should be.

    index: of the entry that is off by most.  expected, got: that entry; expected is None where there should be nothing.
    allowed: by how much it may be off.  off, entries: how many entries are off, and how many there are.
    causes: known mistakes that give the candidate's numbers; none: no mistake does.  notes: what the numbers say then.
    needs: what the quantity is
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
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """In a few lines, for a person."""
        lines = [f"step {self.step}: {self.name} deviates  ({QUANTITIES[self.name].line})", *self._entry()]
        if self.causes:
            lines += [f"  likely cause: {cause}" for cause in self.causes]
        else:
            lines.append("  no known mistake gives these numbers")
            lines += [f"    {note}" for note in self.notes]
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
            f"  {self.name}{where} should be {show(self.expected + 0.0)!r}, is {show(self.got + 0.0)!r}",  # no -0.0
            f"  {off if kind == 'f' else 'it has to be equal'}{others}",
        ]


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    compared: how many quantities agree.  steps: those of which the candidate holds something.  recorded: how many steps
    the trace has.  flips: (step, row, neuron) of gates that differ where y is within its tolerance of 0, which is no
    deviation.  nearest: of the quantities that agree, the one nearest to its bound: the share of the bound that it is
    off by, its step and name.  missing: the quantities that the candidate lacks at its steps, "dW at step 6" where it
    has them at others.  recomputed: of these, the port's own state that its next step was expected from; bounds are
    wider for it.
    """

    compared: int
    steps: list[int]
    tolerance: float
    flips: list[tuple[int, int, int]]
    nearest: tuple[float, int, str]
    recorded: int
    missing: list[str]
    recomputed: list[str]
    deviation: Deviation | None

    @property
    def agrees(self) -> bool:
        """Whether nothing deviates."""
        return self.deviation is None

    def __str__(self) -> str:
        """In a few lines, for a person."""
        share, t, name = self.nearest
        lines = [str(self.deviation)] if self.deviation else []
        steps = len(self.steps)
        part = f"{steps} of " if steps < self.recorded else ""
        of = "before it" if self.deviation else f"of {part}{_counted(self.recorded, 'step')}"
        agrees = "agrees" if self.compared == 1 else "agree"
        agree = f"{_counted(self.compared, 'quantity')} {of} {agrees} to {self.tolerance:g} of their size"
        lines.append(agree + (f"; the nearest to its bound is {name} at step {t}, {share:.2g} of it" if share else ""))
        if self.flips:
            shown = ", ".join(f"step {t} [{row}, {m}]" for t, row, m in self.flips[:5])
            lines.append(f"{_counted(len(self.flips), 'gate')} flipped where y is within rounding of 0: {shown}")
        if self.recomputed:
            lines.append(
                f"recomputed, with wider bounds, as the dump lacks the port's own {', '.join(self.recomputed)}"
            )
        if self.missing and not self.deviation:
            lines.append(f"not in the dump, so not checked: {', '.join(self.missing)}")
        return "\n".join(lines)


def _counted(n: int, noun: str) -> str:
    """A number of things: "1 step", "2 quantities"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"
