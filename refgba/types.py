"""Names for the kinds of array that the reference passes around; shapes are given where they are used."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]  # float64 by default, float32 allowed
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Activation: TypeAlias = Literal["jumprelu", "relu"]
Dtype = Literal["float64", "float32", "tf32", "bfloat16"]
