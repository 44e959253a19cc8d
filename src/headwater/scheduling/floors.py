"""The floor of each band: strict priority above it can't starve it. Pure.

While a band waits behind a higher one, a part of every token served is owed to it. Once it is owed something, its next ask
goes before all others; what that ask is expected to cost is taken off at once, and put right when it has ended. What a band
is served when no higher band waits is not held against it.
"""

from typing import Final

from headwater.scheduling.bands import BANDS_COUNT, Band

FLOORS: Final = (0.0, 0.1, 0.1)
"""The part of all tokens served that a band gets at least, while it waits; by band."""


class Floors:
    """What is owed to each band, in charged tokens."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed = [0.0] * BANDS_COUNT

    def begin(self, band: Band) -> None:
        """A band begins to wait: it brings no claim from before."""
        self._owed[band] = min(0.0, self._owed[band])

    def served(self, tokens: float, waiting: list[int]) -> None:
        """Tokens were served to anybody. waiting: asks by band."""
        interactive, standard, batch = waiting
        if standard and interactive:
            self._owed[Band.STANDARD] += tokens * FLOORS[Band.STANDARD]
        if batch and (interactive or standard):
            self._owed[Band.BATCH] += tokens * FLOORS[Band.BATCH]

    def took(self, band: Band, tokens: float) -> None:
        """A band took tokens while a higher band waited; negative when fewer came of it than was expected."""
        self._owed[band] -= tokens

    def is_owed(self, band: Band) -> bool:
        """Whether the band goes before those above it."""
        return self._owed[band] > 0.0
