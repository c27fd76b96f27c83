"""A request that is refused: its status, and what to change."""

from collections.abc import Mapping

TOKEN_VARIABLE = "SHOAL_SERVE_TOKEN"


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
        row: of the request, from 0, whose value is the reason; None: it is no value's fault.
        column: of that value.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        row: int | None = None,
        column: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.row, self.column = status, message, row, column
        self.headers = dict(headers or {})

    @property
    def details(self) -> dict[str, object]:
        """What the answer says, in a form that all protocols may hold."""
        found: dict[str, object] = {"status": self.status, "message": self.message}
        if self.row is not None:
            found["row"] = self.row
        if self.column is not None:
            found["column"] = self.column
        return found


def invalid(message: str, row: int | None = None, column: str | None = None) -> RequestError:
    """Return a refusal of rows that do not fit the signature."""
    return RequestError(422, message, row, column)


def malformed(message: str) -> RequestError:
    """Return a refusal of a body that is not in the form of its protocol."""
    return RequestError(400, message)
