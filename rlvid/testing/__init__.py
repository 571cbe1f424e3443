"""What a plugin author needs: a tiny real model and checks of the protocols.

The checks raise AssertionError with one line that says which promise was broken.
"""

from rlvid.algorithms.testing import check_algorithm as check_algorithm
from rlvid.testing.models import check_model as check_model
from rlvid.testing.models import tiny_model as tiny_model
from rlvid.testing.rewards import check_reward as check_reward
