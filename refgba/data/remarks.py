"""What a user should know of rows before they are trained on or judged, one sentence for each thing that stands out.

Every sentence says what it means for training.  Numbers are those of `refgba.data.survey.Survey`; what earlier versions
did not measure is missing, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refgba.data.centre import OFFSET, TOLD
from refgba.data.dimensions import MASSIVE

# A remark is made from these values on; FAINT is where rows begin to be counted as near zero, too.
FAINT = 1e-3  # of the median norm, below which rows are reported
LONG = 10.0  # times the median norm
REPEATED = 0.05  # of the rows compared
# Of the total variance, in massive dimensions.  On the imbalanced set (M 512, 1500 steps, one seed) with noise in one
# coordinate FRR(0.9) falls from 95% without it to 75, 67, 48 and 9% where it holds 24, 43, 62 and 78% of the variance.
SHARE = 0.2


def remarks(
    *, dropped: int = 0, faint: int = 0, faint_dropped: int = 0, median_norm: float | None = None,
    drop_below: float = 0.0, offset: float | None = None, centred: bool = False, **measured: Any,
) -> Iterator[str]:  # fmt: skip
    """The sentences on rows with these numbers; measured: the other numbers of a survey."""
    if dropped > faint_dropped:
        yield f"{dropped - faint_dropped} rows of zeros are left out"
    if faint_dropped:
        yield f"{faint_dropped} rows with a norm below {drop_below:g} of the median, {median_norm:.3g}, are left out"
    if faint:
        yield (
            f"{faint} rows have a norm under a thousandth of the median, {median_norm:.3g}, and count in full once "
            f"they are scaled; --drop-below {FAINT:g} skips them"
        )
    if offset is not None and (centred or offset >= TOLD):
        shared = f"all rows share an offset of {offset:.2g} times their typical distance from it, which is no feature"
        hides = "hides features" if offset >= OFFSET else "can hide some features"
        done = "is subtracted" if centred else f"{hides}; --centre on subtracts it"
        yield f"{shared} and {done}"
    yield from _massive(**measured)
    yield from _long(median_norm, **measured)
    yield from _repeated(**measured)


def statistics(measured: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What rows are like: names and their numbers in words, of a survey's; what was not measured is left out."""
    median, largest = measured.get("median_norm"), measured.get("largest_norm")
    if median and largest is not None:
        yield "norms", f"{median:.3g} in the median, {largest:.3g} ({largest / median:.3g} times that) at most"
    if measured.get("variance") is not None:
        yield "variance of unit rows", f"{measured['variance']:.3g}, where 1 is that of rows with a mean of 0"
    if measured.get("offset") is not None:
        done = "subtracted" if measured.get("centred") else f"rows are centred from {OFFSET:g} on unless told otherwise"
        yield "offset that rows share", f"{measured['offset']:.2g} times their typical distance from it ({done})"
    if measured.get("gamma") is not None:
        yield "γ", f"{measured['gamma']:.2g}, the norm of the mean over the root of the total variance"
    if measured.get("massive") is not None:
        yield "massive dimensions", _dimensions(**measured)
    if measured.get("compared"):
        counts = f"{measured['repeated']:,} of {measured['compared']:,} rows compared equal an earlier one"
        commonest = f"; the commonest occurs {measured['commonest']:,} times" if measured["repeated"] else ""
        yield "repeated rows", counts + commonest


def _dimensions(
    *, massive_dimensions: int, massive_share: float, massive: Sequence[Mapping[str, Any]], **_others: Any
) -> str:  # fmt: skip
    """Which dimensions are massive, in words."""
    if not massive_dimensions:
        return f"none has {MASSIVE:g} times the mean square of the median dimension"
    entries = [f"{e['dimension']} ({e['ratio']:.3g} times, {e['share']:.2g} of the variance)" for e in massive]
    more = ", ..." if massive_dimensions > len(massive) else ""
    return (
        f"{massive_dimensions} with {MASSIVE:g} or more times the mean square of the median dimension, together "
        f"{massive_share:.1%} of the variance: {', '.join(entries)}{more}"
    )


def _massive(
    *, massive_dimensions: int = 0, massive_share: float = 0.0, massive: Any = (), **_others: Any
) -> Iterator[str]:  # fmt: skip
    if massive_dimensions and massive_share >= SHARE:
        named = ", ".join(str(entry["dimension"]) for entry in massive)
        more = ", ..." if massive_dimensions > len(massive) else ""
        which = "one dimension holds" if massive_dimensions == 1 else f"{massive_dimensions} massive dimensions hold"
        them = "it" if massive_dimensions == 1 else "these"
        yield (
            f"{which} {massive_share:.0%} of the variance ({named}{more}): FVU and cosines measure mostly {them}, and "
            "the larger that share, the fewer features are found in the others"
        )


def _long(
    median_norm: float | None, *, largest_norm: float | None = None, largest_in: int | None = None,
    largest_share: float | None = None, **_others: Any,
) -> Iterator[str]:  # fmt: skip
    if largest_norm is None or not median_norm or largest_norm < LONG * median_norm:
        return
    where = "" if largest_share is None else f", {largest_share:.0%} of its square in dimension {largest_in}"
    yield (
        f"the largest row norm is {largest_norm / median_norm:.3g} times the median{where}; scaled to unit norm, such "
        "a row counts as much as any other"
    )


def _repeated(*, compared: int = 0, repeated: int = 0, commonest: int = 0, **_others: Any) -> Iterator[str]:
    if compared and repeated >= REPEATED * compared:
        yield (
            f"{repeated} of {compared} rows compared equal an earlier one, the commonest row occurs {commonest} times: "
            "each copy counts in full, and rows held out may equal rows trained on"
        )
