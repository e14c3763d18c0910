"""What checks of refusals share."""


def expect(error, words, function, *arguments):
    """Call a function that has to raise an error whose message has all words."""
    try:
        function(*arguments)
    except error as raised:
        missing = [word for word in words if word not in str(raised)]
        assert not missing, (missing, str(raised))
        return
    raise AssertionError(f"{error.__name__} expected")
