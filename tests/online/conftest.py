import pytest

pytest.register_assert_rewrite("feature_assets.testing")
