"""Selectors of nodes in the form of Ray's documentation, and back."""

from shoal.cluster.node_selector import leaving_out, left_out


def test_nodes_are_left_out_by_the_label_that_ray_gives_them():
    assert leaving_out(["a1", "b2"]) == {"ray.io/node-id": "!in(a1,b2)"}
    assert leaving_out([]) is None


def test_a_selector_tells_which_nodes_it_leaves_out():
    assert left_out(leaving_out(["a1", "b2"])) == {"a1", "b2"}
    assert left_out(leaving_out(["a1"])) == {"a1"}
    assert left_out(None) == set()
