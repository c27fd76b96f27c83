"""What a sweep's validation finds beyond its schema, before anything starts."""

import pytest

from shoal.errors import ConfigError
from shoal.tune.config import load_sweep
from shoal.tune.validate import validate_sweep


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["model.width=by(widths:fractions)", "optim.lr=0.1,0.2"],
            ["model.width=uniform(16, 32)", "randint(16, 33)"],
        ),
        (
            ["model.name=widths:Net", "model.args.hidden=uniform(4, 8)"],
            ["model.args.hidden", "randint(4, 9)"],
        ),
    ],
)
def test_a_range_of_fractions_is_refused_wherever_a_whole_number_is_declared(
    tmp_path, monkeypatch, settings, words
):
    (tmp_path / "widths.py").write_text(
        "from torch import nn\n"
        "def fractions(point):\n    return 'uniform(16, 32)'\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, inputs: int, outputs: int, hidden: int = 4):\n"
        "        super().__init__(nn.Linear(inputs, hidden), nn.Linear(hidden, outputs))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        validate_sweep(load_sweep(None, settings), lambda scale, spare_cpus: False)
    for word in words:
        assert word in str(refused.value)
