"""Ranges: read, written and refused as documented; draws, grids and corners of them."""

import copy
import json
import math

import numpy as np
import pytest

from shoal.errors import ConfigError
from shoal.tune.space.domains import (
    By,
    Choice,
    Grid,
    LogUniform,
    QUniform,
    RandInt,
    Uniform,
    describe_domain,
    is_random,
)
from shoal.tune.space.parsing import parse_block, parse_setting
from shoal.tune.space.sampling import (
    MAX_CORNERS,
    canonical,
    corners,
    grid_points,
    point_seed,
    resolve,
    sample,
)

DOMAINS = [
    Grid((32, 64, 128)),
    Grid((32,)),
    Choice(("adam", "sgd")),
    Choice((True, None, 1, 1.0, "1", "true", "null", "a, b", "it's", 'say "so"', "f(x)", "", " x ", "1e-3")),
    Choice(([64, 32], [128])),
    Choice(([64, 32],)),
    Grid(({"dropout": 0.1}, {"dropout": 1e-5, "act": "relu", "deep": {"x": [1, {"y": None}]}})),
    Choice(("csv:a.csv", "synthetic:classification?rows=100&features=10", "mod:f", "s3://b/k", "2024-01-01")),
    Choice(("größe", "多", "🐟", "line\nbreak", "a:", "- a", "*a", "#", "null")),
    Uniform(0, 0.5),
    Uniform(-1e22, 1e-9),
    LogUniform(1e-5, 0.1),
    QUniform(0, 1, 0.1),
    RandInt(1, 9),
    RandInt(-3, 4),
    By("package.module:function"),
]


def draws(domain, count=1000, key="x"):
    rng = np.random.default_rng(0)
    return [sample({key: domain}, rng)[key] for _ in range(count)]


def refusal(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loguniform(1e-4,1e-1)", LogUniform(1e-4, 0.1)),
        (" loguniform ( 1e-4 , 1e-1 ) ", LogUniform(1e-4, 0.1)),
        ("uniform(0, 1)", Uniform(0.0, 1.0)),
        ("quniform(0,1,.1)", QUniform(0.0, 1.0, 0.1)),
        ("randint(1, 1e3)", RandInt(1, 1000)),
        ("randint:1:1e3", RandInt(1, 1000)),
        ("loguniform:1e-4:1e-1", LogUniform(1e-4, 1e-1)),
        ("quniform:0:1:0.1", QUniform(0, 1, 0.1)),
        ("choice:adam:sgd", Choice(("adam", "sgd"))),
        ("choice:null:0.5:true", Choice((None, 0.5, True))),
        ("grid:32:64", Grid((32, 64))),
        ("choice(adam, sgd)", Choice(("adam", "sgd"))),
        ("choice('a, b', \"c)\")", Choice(("a, b", "c)"))),
        ("choice([64,32],[128])", Choice(([64, 32], [128]))),
        ("choice({dropout: 0.1}, {dropout: 0.2})", Choice(({"dropout": 0.1}, {"dropout": 0.2}))),
        ("grid(1, 2)", Grid((1, 2))),
        ("grid_search([1, 2])", Grid((1, 2))),
        ("choice([[64, 32]])", Choice(([64, 32],))),
        ("32,64,128", Grid((32, 64, 128))),
        ("1e-3, 1e-2", Grid((0.001, 0.01))),
        ("true,null,auto", Grid((True, None, "auto"))),
        ("[64,32],[128]", Grid(([64, 32], [128]))),
        ("{a: 1}, {a: 2}", Grid(({"a": 1}, {"a": 2}))),
        ("csv:a.csv,csv:b.csv", Grid(("csv:a.csv", "csv:b.csv"))),
        ("by(package.module:function)", By("package.module:function")),
    ],
)
def test_a_range_is_read_as_written(text, expected):
    domain = parse_setting("key", text)
    assert domain == expected
    assert type(domain) is type(expected)


def test_elements_keep_the_types_that_a_config_would_give_them():
    values = parse_setting("key", "1,1.0,1e-3,true,null,x,'1'").values
    assert [type(value) for value in values] == [int, float, float, bool, type(None), str, str]


@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "adam",
        "",
        "null",
        "{val/accuracy: 0.9}",
        "[1, 2]",
        "{a: 1, b: 2}",
        "a: 1, b: 2",
        "'adam, sgd'",
        "'choice(a, b)'",
        "csv:data.csv",
        "csv:data (1).csv",
        "synthetic:classification?rows=100&features=10",
        "csv:data.csv?columns=a,b",
        "package.module:function",
        "package.module:function(1, 2)",
        "a(b",
        "a(b, c",
        "a)",
        "()",
        "model (v2)",
        "package.f(1, 2)",
        "32,,64",
        "32,",
        "[1, 2",
    ],
)
def test_a_plain_value_is_not_taken_for_a_range(text):
    assert parse_setting("key", text) is None


def test_dates_are_texts():
    assert parse_setting("key", "2024-01-01, x") == Grid(("2024-01-01", "x"))
    assert parse_setting("key", "choice(2024-01-01, x)") == Choice(("2024-01-01", "x"))


@pytest.mark.parametrize("domain", DOMAINS, ids=describe_domain)
def test_a_described_range_reads_back_equal(domain):
    read = parse_setting("key", describe_domain(domain))
    assert read == domain
    assert type(read) is type(domain)
    if isinstance(domain, Grid | Choice):
        assert json.dumps(read.values) == json.dumps(domain.values)


def test_a_range_is_described_the_way_a_person_writes_it():
    texts = ["loguniform(0.0001, 0.1)", "uniform(0, 1)", "choice(adam, sgd)", "grid(32, 64)", "randint(1, 9)"]
    assert [describe_domain(parse_setting("key", text)) for text in texts] == texts


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("logunifrom(1,2)", ["logunifrom(1,2)", "unknown range", "did you mean 'loguniform'", "quotes"]),
        ("Uniform(1,2)", ["did you mean 'uniform'"]),
        ("f(x)", ["unknown range 'f'", "choice"]),
        (
            "loguniform(0, 1)",
            ["loguniform(0, 1)", "a logarithmic range cannot reach zero", "e.g. loguniform"],
        ),
        ("loguniform(-1, 1)", ["cannot reach zero"]),
        ("loguniform(1, 0.1)", ["low must be less than high"]),
        ("uniform(1, 1)", ["uniform(1, 1)", "low must be less than high", "e.g. uniform(0, 0.5)"]),
        ("uniform(0, .inf)", ["inf is not a finite number"]),
        ("uniform(.nan, 1)", ["nan is not a finite number"]),
        ("uniform(0, high)", ["uniform(0, high)", "high is not a number"]),
        ("uniform(0, true)", ["true is not a number"]),
        ("uniform(0, '1')", ['"1" is not a number']),
        ("uniform(0)", ["uniform(0)", "has 1 arguments and takes 2 (low, high)", "e.g. uniform(0, 0.5)"]),
        ("uniform(0, 1, 0.1)", ["has 3 arguments and takes 2"]),
        ("uniform([0, 1])", ["has 1 arguments"]),
        ("quniform(0, 1)", ["takes 3 (low, high, q)", "e.g. quniform(0, 1, 0.1)"]),
        ("quniform(1, 0, 1)", ["low must be less than high"]),
        ("quniform(0, 1, 0)", ["q must be greater than 0"]),
        ("quniform(0.1, 0.4, 0.5)", ["no multiple of q lies between"]),
        ("randint(1, 1)", ["low must be less than high, which is itself excluded", "e.g. randint(1, 9)"]),
        ("randint(0.5, 3)", ["0.5 is not a whole number"]),
        ("randint(0, .inf)", ["not a whole number"]),
        ("randint(a, b)", ["a is not a whole number"]),
        ("uniform:0.1", ["it has 1 arguments and takes 2 (low, high)", "e.g. uniform(0, 0.5)"]),
        ("uniform:0:", ["a value is missing between colons"]),
        ("choice:a,b:c", ["a value is missing between colons, or has a comma"]),
        ("choice()", ["choice(): it is empty", "e.g. choice(adam, sgd)"]),
        ("grid()", ["it is empty", "e.g. grid(32, 64, 128)"]),
        ("32,64,32", ["grid(32, 64, 32)", "32 is in it twice"]),
        ("choice({a: 1}, {a: 1})", ["is in it twice"]),
        ("choice(1, .nan)", ["nan", "not a finite number"]),
        ("choice({1: 2}, x)", ["mappings by text"]),
        ("choice(a, [b)", ["'a, [b' is not a list", "e.g. choice(adam, sgd)", "quote"]),
        ("choice(a, b", ["bracket after 'choice' does not close"]),
        ("choice(a, b), c", ["bracket after 'choice' does not close"]),
        ("by(function)", ["function is not the import path", "e.g. by(package.module:function)"]),
        ("by()", ["takes 1 (path)"]),
        ("by(3)", ["3 is not the import path"]),
    ],
)
def test_a_range_that_breaks_a_rule_is_refused_with_its_key_the_rule_and_a_right_form(text, pieces):
    message = refusal(parse_setting, "optim.lr", text)
    assert message.startswith("optim.lr=")
    assert all(piece in message for piece in pieces), message


def test_a_range_made_in_python_obeys_the_same_rules():
    assert "cannot reach zero" in refusal(LogUniform, 0, 1)
    assert "is empty" in refusal(Choice, ())
    assert "not a number" in refusal(Uniform, "0", 1)
    assert isinstance(Uniform(np.float32(0), np.int64(1)).high, float)
    assert type(Choice((np.int64(3),)).values[0]) is int
    assert Choice(((64, 32), (128,))).values == ([64, 32], [128])


def test_a_block_holds_dotted_and_nested_keys_texts_lists_and_words_in_the_order_written():
    space = parse_block(
        {
            "optim": {"lr": {"loguniform": [1e-4, 1e-1]}, "name": "choice(adam, sgd)"},
            "data.global_batch_size": [32, 64],
            "model": {"args": {"dropout": "uniform(0, 0.5)", "hidden": {"choice": [[64, 32], [128]]}}},
            "seed": "1,2",
            "optim.momentum": {"by": "mine:momentum"},
            "model.depth": {"grid_search": [1, 2]},
        }
    )
    assert list(space.items()) == [
        ("optim.lr", LogUniform(1e-4, 0.1)),
        ("optim.name", Choice(("adam", "sgd"))),
        ("data.global_batch_size", Grid((32, 64))),
        ("model.args.dropout", Uniform(0, 0.5)),
        ("model.args.hidden", Choice(([64, 32], [128]))),
        ("seed", Grid((1, 2))),
        ("optim.momentum", By("mine:momentum")),
        ("model.depth", Grid((1, 2))),
    ]
    assert parse_block({}) == {}


@pytest.mark.parametrize(
    ("block", "pieces"),
    [
        ({"optim": {"lr": 0.1}}, ["optim.lr=0.1", "a value and not a range", "set it outside of space:"]),
        ({"optim.name": "adam"}, ["optim.name='adam'", "set it outside of space:"]),
        ({"optim": None}, ["optim=None", "set it outside of space:"]),
        ({"optim": {}}, ["optim={}", "set it outside of space:"]),
        ({"optim.lr": {"loguniform": [0, 1]}}, ["optim.lr=loguniform(0, 1)", "cannot reach zero"]),
        ({"optim.lr": {"loguniform": 1}}, ["has 1 arguments and takes 2"]),
        ({"optim.lr": {"uniform": [0, 1], "q": 1}}, ["optim.lr=", "a range is one word"]),
        ({"optim.lr": []}, ["optim.lr=grid()", "is empty"]),
        ({"optim.lr": "1,2", "optim": {"lr": "3,4"}}, ["optim.lr=grid(3, 4)", "twice", "keep one"]),
        ({"optim.lr": "logunifrom(1, 2)"}, ["optim.lr=", "did you mean 'loguniform'"]),
        ([1], ["space=[1]", "key: range"]),
    ],
)
def test_a_bad_block_is_refused_with_its_key_the_rule_and_the_remedy(block, pieces):
    message = refusal(parse_block, block)
    assert all(piece in message for piece in pieces), message


@pytest.mark.parametrize("domain", [Uniform(-2, 3), LogUniform(1e-4, 0.1), QUniform(0.1, 0.7, 0.1)])
def test_a_thousand_draws_are_plain_floats_in_range(domain):
    values = draws(domain)
    assert all(type(value) is float and domain.low <= value <= domain.high for value in values)


def test_the_median_of_a_log_uniform_range_is_its_geometric_mean():
    assert np.median(draws(LogUniform(1e-4, 1))) == pytest.approx(1e-2, rel=0.3)
    assert np.median(draws(Uniform(0, 1))) == pytest.approx(0.5, abs=0.05)


def test_a_quantised_draw_is_an_exact_multiple_and_each_is_as_likely():
    values = draws(QUniform(0, 1, 0.1))
    assert set(values) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    assert min(values.count(value) for value in set(values)) > 50
    assert set(draws(QUniform(0.25, 1, 0.3))) == {0.3, 0.6, 0.9}


def test_whole_numbers_reach_low_but_not_high():
    values = draws(RandInt(-2, 3))
    assert set(values) == {-2, -1, 0, 1, 2}
    assert {type(value) for value in values} == {int}


@pytest.mark.parametrize("kind", [Grid, Choice])
def test_every_value_of_a_list_is_drawn_as_it_is(kind):
    values = draws(kind((1, 1.0, True, None, "a", [1], {"b": 2})))
    assert {json.dumps(value) for value in values} == {"1", "1.0", "true", "null", '"a"', "[1]", '{"b": 2}'}


def test_a_value_is_rounded_to_the_nearest_multiple_within_the_range():
    domain = QUniform(0.05, 0.95, 0.1)
    assert [domain.nearest(x) for x in (0.05, 0.3000000001, 0.1 + 0.2, 0.64, 5.0, -5.0)] == [
        0.1,
        0.3,
        0.3,
        0.6,
        0.9,
        0.1,
    ]
    for value in np.random.default_rng(0).uniform(0, 1, 1000):
        assert len(repr(domain.nearest(float(value)))) == 3
    assert QUniform(0, 1e-4, 1e-5).nearest(3.2e-5) == 3e-5


SPACE = {
    "a": Uniform(0, 1),
    "b": LogUniform(1e-3, 1),
    "c": Choice(tuple(range(100))),
    "d": RandInt(0, 1000),
    "e": Grid((1, 2, 3)),
}


def test_equal_generators_draw_equal_points_and_one_generator_draws_new_ones():
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    points = [sample(SPACE, one) for _ in range(20)]
    assert points == [sample(SPACE, two) for _ in range(20)]
    assert len({canonical(point) for point in points}) == 20
    assert list(points[0]) == list(SPACE)


def test_what_is_drawn_does_not_change_between_versions():
    assert sample(SPACE, np.random.default_rng(0)) == pytest.approx(
        {"a": 0.46890978262225136, "b": 0.004910303958064788, "c": 19, "d": 798, "e": 3}
    )


def test_the_draw_of_a_key_depends_neither_on_the_given_keys_nor_on_the_others_in_the_space():
    full = sample(SPACE, np.random.default_rng(5))
    for key in SPACE:
        assert sample({key: SPACE[key]}, np.random.default_rng(5)) == {key: full[key]}
        given = sample(SPACE, np.random.default_rng(5), {key: "mine"})
        assert given == full | {key: "mine"}
        assert list(given) == list(SPACE)


def test_keys_of_the_same_range_draw_differently():
    point = sample({f"k{i}": Uniform(0, 1) for i in range(100)}, np.random.default_rng(0))
    assert len(set(point.values())) == 100


def test_given_keys_outside_the_space_are_kept_and_the_given_point_is_not_changed():
    given = {"z": 1}
    assert list(sample({"a": Grid((1,))}, np.random.default_rng(0), given)) == ["a", "z"]
    assert given == {"z": 1}


CONDITIONAL = """
import numpy as np
from shoal.tune.space.domains import By, Choice

def momentum(point):
    return "uniform(0.8, 0.99)" if point["optim.name"] == "sgd" else 0.0

def width(point):
    return [point["depth"] * 10, point["depth"] * 20]

def chosen(point):
    return Choice(("a", "b"))

def word(point):
    return {"randint": [5, 7]}

def after(point):
    return point["first"] + 1

def numpy_value(point):
    return np.float64(0.5)

def text(point):
    return "adam"

def nothing(point):
    return None

def changes(point):
    point["a"].append(3)
    return 1

def again(point):
    return By("mine:other")

def raises(point):
    return point["missing"]

def nonsense(point):
    return {1, 2}

def infinite(point):
    return float("inf")

def bad_range(point):
    return "loguniform(0, 1)"

def misspelt(point):
    return "unifrom(0, 1)"
"""


@pytest.fixture
def mine(user_module):
    name = user_module(CONDITIONAL)
    return lambda function: By(f"{name}:{function}")


def test_a_conditional_range_depends_on_the_values_chosen_before_it(mine):
    space = {"optim.momentum": mine("momentum"), "optim.name": Choice(("adam", "sgd"))}
    rng = np.random.default_rng(0)
    for point in (sample(space, rng) for _ in range(200)):
        assert list(point) == ["optim.momentum", "optim.name"]
        if point["optim.name"] == "adam":
            assert point["optim.momentum"] == 0.0
        else:
            assert 0.8 <= point["optim.momentum"] <= 0.99


def test_conditional_ranges_are_resolved_in_their_order_after_all_others(mine):
    space = {"second": mine("after"), "first": Grid((4,))}
    assert sample(space, np.random.default_rng(0)) == {"second": 5, "first": 4}
    space = {"first": mine("word"), "second": mine("after")}
    point = sample(space, np.random.default_rng(0))
    assert point["second"] == point["first"] + 1


def test_a_given_conditional_key_is_kept_and_its_function_not_called(mine):
    assert sample({"x": mine("raises")}, np.random.default_rng(0), {"x": 3}) == {"x": 3}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("width", Grid((30, 60))),
        ("chosen", Choice(("a", "b"))),
        ("word", RandInt(5, 7)),
        ("text", "adam"),
        ("nothing", None),
        ("numpy_value", 0.5),
    ],
)
def test_what_a_conditional_function_returns_becomes_a_range_or_a_plain_value(mine, function, expected):
    found = resolve(mine(function), {"depth": 3})
    assert found == expected
    assert type(found) is type(expected)


def test_an_unconditional_range_resolves_to_itself():
    assert resolve(Uniform(0, 1), {}) == Uniform(0, 1)


def test_a_conditional_function_cannot_change_the_point(mine):
    point = {"a": [1, 2]}
    before = copy.deepcopy(point)
    assert resolve(mine("changes"), point) == 1
    assert point == before


@pytest.mark.parametrize(
    ("function", "pieces"),
    [
        ("again", ["returned by(mine:other)", "not another by()"]),
        ("raises", ["raised KeyError: 'missing'", "the keys it receives here are depth"]),
        ("nonsense", ["returned {1, 2}", "a set is no value of a config"]),
        ("infinite", ["returned inf", "not a finite number"]),
        ("bad_range", ["returned loguniform(0, 1)", "cannot reach zero"]),
        ("misspelt", ["returned unifrom(0, 1)", "did you mean 'uniform'"]),
    ],
)
def test_a_conditional_function_that_misbehaves_is_named(mine, function, pieces):
    domain = mine(function)
    message = refusal(resolve, domain, {"depth": 3}, "optim.lr")
    assert message.startswith(f"optim.lr=by({domain.path})")
    assert all(piece in message for piece in pieces), message


def test_a_missing_conditional_function_is_named_with_the_nearest(mine):
    message = refusal(sample, {"optim.lr": mine("momentun")}, np.random.default_rng(0))
    assert "optim.lr=" in message
    assert "did you mean 'momentum'" in message


def test_grids_are_combined_with_the_first_key_slowest():
    space = {"a": Grid((1, 2)), "x": Uniform(0, 1), "b": Grid(("p", "q"))}
    assert grid_points(space) == [
        {"a": 1, "b": "p"},
        {"a": 1, "b": "q"},
        {"a": 2, "b": "p"},
        {"a": 2, "b": "q"},
    ]


def test_without_grids_there_is_one_empty_grid_point():
    assert grid_points({"x": Uniform(0, 1)}) == grid_points({}) == [{}]


def test_a_space_is_random_when_anything_but_grids_is_in_it():
    assert not is_random({})
    assert not is_random({"a": Grid((1,))})
    assert is_random({"a": Grid((1,)), "b": By("mine:f")})


def test_the_corners_are_every_combination_of_values_and_ends():
    space = {
        "a": Uniform(0, 1),
        "b": Choice(("p", "q", "r")),
        "c": RandInt(1, 9),
        "d": QUniform(0.05, 1, 0.1),
    }
    points = corners(space)
    assert len(points) == 2 * 3 * 2 * 2
    assert {point["c"] for point in points} == {1, 8}
    assert {point["d"] for point in points} == {0.1, 1.0}
    assert all(list(point) == list(space) for point in points)
    assert corners({}) == [{}]


def test_equal_corners_come_once():
    assert corners({"a": RandInt(3, 4)}) == [{"a": 3}]


def test_in_a_large_space_the_corners_leave_the_first_one_key_at_a_time():
    assert len(corners({f"k{i}": Uniform(0, 1) for i in range(6)})) == MAX_CORNERS
    points = corners({f"k{i}": Uniform(0, 1) for i in range(100)})
    assert len(points) == 101
    assert sorted(sum(point.values()) for point in points) == [0.0] + [1.0] * 100


def test_conditional_ranges_are_resolved_at_every_corner(mine):
    space = {"width": mine("width"), "depth": Choice((1, 2))}
    assert corners(space) == [
        {"width": 10, "depth": 1},
        {"width": 20, "depth": 1},
        {"width": 20, "depth": 2},
        {"width": 40, "depth": 2},
    ]
    many = space | {f"k{i}": Uniform(0, 1) for i in range(10)}
    points = corners(many)
    assert len(points) == 1 + 1 + 1 + 10
    assert {(point["depth"], point["width"]) for point in points} == {(1, 10), (1, 20), (2, 20)}


def test_equal_points_have_one_text_whatever_the_order_of_their_keys():
    assert canonical({"b": [1, {"y": 1, "x": None}], "a": 0.1}) == '{"a":0.1,"b":[1,{"x":null,"y":1}]}'
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical({"a": 1}) != canonical({"a": "1"})


def test_a_points_seed_depends_on_the_point_the_sweep_and_the_repeat_and_fits_a_config():
    seeds = {
        point_seed(seed, {"a": a}, repeat) for seed in range(10) for a in range(10) for repeat in range(10)
    }
    assert len(seeds) == 1000
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    assert max(seeds) > 2**30
    assert point_seed(1, {"a": 1, "b": 2}, 0) == point_seed(1, {"b": 2, "a": 1}, 0) == 1461348084


def test_draws_never_leave_a_log_uniform_range():
    domain = LogUniform(0.1, math.nextafter(0.1, 1))
    assert all(domain.low <= value <= domain.high for value in draws(domain, 100))
