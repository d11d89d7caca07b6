"""The main job and its sweep: which trainings are run, by which search, and who is told of them.

In: a search space and a config. Out: a sweep's directory with the table and the best trial. How one training runs is
decided in ``training``, how its results are shown in ``results``.
"""
