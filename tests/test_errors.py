import inspect

from nemoalign import errors

CONTRACT = {
    "ConfigError": 2, "SourceError": 3, "ContentError": 4, "ShapeError": 4, "ConflictError": 5,
    "VerificationError": 6, "ResourceError": 7, "LostRankError": 7, "DataError": 8, "DivergedError": 9, "Stopped": 75,
    "Interrupted": 130,
}  # fmt: skip


def test_exit_codes_are_the_ones_scripts_depend_on() -> None:
    classes = {
        name: error.exit_code
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.NemoAlignError) and error is not errors.NemoAlignError
    }
    assert classes == CONTRACT
    assert errors.INTERRUPTED == 130


def test_a_wrong_setting_is_also_a_value_error() -> None:
    assert issubclass(errors.ConfigError, ValueError)
