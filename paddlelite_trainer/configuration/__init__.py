"""`paddlelite fit --config run.yaml`: a run put together from a file, by jsonargparse.

`files.py` reads YAML and knows the lines, `checking.py` says what in it is wrong, `parser.py` is what jsonargparse
does, `making.py` the objects that come of it, `which_run.py` which run goes on, `keeping.py` the copy that a run and
its checkpoints have, `command.py` the commands.
"""
