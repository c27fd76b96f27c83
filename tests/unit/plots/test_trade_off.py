"""What compression costs and gains as a picture."""

from shoal.plots.trade_off import TradeOff, pareto_front, trade_off


def test_the_front_leaves_out_what_another_point_beats():
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (2.0, 0.7)]
    assert pareto_front(points, higher_is_better=True) == [(1.0, 0.5), (2.0, 0.9)]
    assert pareto_front(points, higher_is_better=False) == [(1.0, 0.5)]


def test_it_is_a_png():
    points = [TradeOff("original", 400, 2.0, 0.9), TradeOff("pruned", 100, 1.0, 0.89)]
    assert trade_off(points, "accuracy", True, 64, "a title").startswith(b"\x89PNG")
