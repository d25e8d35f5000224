import pytest
from triton_interpreter import INTERPRETED


@pytest.fixture(autouse=True, scope="session")
def bounds_of_loops():
    """Triton 3.6's interpreter makes them numbers in a way that numpy 2.4 refuses:
    https://github.com/triton-lang/triton/issues/9171"""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield
