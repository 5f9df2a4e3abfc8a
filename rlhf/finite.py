"""The one rule for NaN and infinity: what made such a number stops and says where, and nothing of it is saved."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

SHOWN = 3  # names or prompts in a message


class NotFiniteError(FloatingPointError, ValueError):
    """What should be a number is NaN or infinite."""


def require(
    where: str, numbers: Mapping[str, object], *, prompts: Iterable[str] = (), kept: object = "", advice: str = ""
) -> None:
    """Raise NotFiniteError unless all numbers are finite; each is a float, a list, an array or a tensor.

    The message says `where` (stage, step), which numbers, the prompts of the batch, the last good checkpoint (`kept`)
    and what to do (`advice`). The prompts are only made where they are needed: they may be a generator.
    """
    bad = [name for name, value in numbers.items() if not _is_finite(value)]
    if not bad:
        return
    values = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, float))
    message = f"{where}: {_some(bad, ' and ')} not finite" + f" ({values})" * bool(values)
    if asked := [repr(prompt[:60]) for prompt in prompts]:
        message += f"; prompts of the batch: {_some(asked, ', ')}"
    raise NotFiniteError(message + f"; last checkpoint: {kept}" * bool(kept) + f". {advice}" * bool(advice))


def _is_finite(value) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    return bool(np.isfinite(np.asarray(value, dtype=float)).all())


def _some(items: Sequence[str], between: str) -> str:
    rest = len(items) - SHOWN
    return between.join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
