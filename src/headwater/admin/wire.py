"""What travels over the admin socket beside the wishes and answers of the verbs."""

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """An OperatorError on its way to the person."""

    what: str
    why: str
    now: str
