from callbacks import *  # noqa: F403
