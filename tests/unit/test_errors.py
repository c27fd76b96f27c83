import pickle

import pytest

from shoal import errors

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ShoalError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_crosses_process_boundaries_with_its_message(kind):
    error = kind("lr=-1: it should be greater than 0")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


@pytest.mark.parametrize(
    ("kind", "standard", "exit_code"),
    [
        (errors.ConfigError, ValueError, 2),
        (errors.DataError, ValueError, 2),
        (errors.ModelError, ValueError, 2),
        (errors.CheckpointError, ValueError, 2),
        (errors.StorageError, OSError, 2),
        (errors.DivergedError, ArithmeticError, 1),
        (errors.TrainingError, RuntimeError, 1),
        (errors.VerificationError, RuntimeError, 1),
        (errors.Interrupted, Exception, 130),
    ],
)
def test_an_error_is_caught_as_its_standard_kind_and_has_the_promised_exit_code(kind, standard, exit_code):
    with pytest.raises(standard):
        raise kind("message")
    assert kind("message").exit_code == exit_code


def test_nearest_names_the_closest_word_and_is_silent_when_nothing_is_close():
    assert errors.nearest("accurcy", ["loss", "accuracy"]) == " (did you mean 'accuracy'?)"
    assert errors.nearest("zzz", ["loss", "accuracy"]) == ""
