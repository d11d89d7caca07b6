"""Trainings: what one is made of, its losses and steps, the loop, checkpoints, and the stage that it becomes.

In: a config, data sets and a ``Place``. Out: a finished stage directory and its networks. ``on_ray`` alone imports Ray.
Networks are defined in ``networks``; which trainings are run is decided in ``tuning``, their results in ``results``.
"""
