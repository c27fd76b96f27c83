"""Label selectors that leave nodes out, in the form in which Ray takes them."""

from collections.abc import Sequence

NODE_ID = "ray.io/node-id"  # a label that Ray gives each node
NOT_IN = "!in({})"

Selector = dict[str, str] | None


def leaving_out(nodes: Sequence[str]) -> Selector:
    """Return a selector of all nodes but some, by Ray's names; None where there are none to leave out."""
    return {NODE_ID: NOT_IN.format(",".join(nodes))} if nodes else None


def left_out(selector: Selector) -> frozenset[str]:
    """Return which nodes a selector of `leaving_out` leaves out."""
    if not selector:
        return frozenset()
    before, _, after = NOT_IN.partition("{}")
    return frozenset(selector[NODE_ID].removeprefix(before).removesuffix(after).split(","))
