"""What the tests of the rigs' short sizes share."""


class Told:
    """Keeps what a rig says, to show it when the test fails."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Nothing."""

    def advance(self, count: int = 1) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)
