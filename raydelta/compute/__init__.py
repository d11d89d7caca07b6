"""What runs where: the cluster, the device of a process, calls on Ray, the jobs of a remote cluster.

In: the config and Ray. Out: a running Ray, a ``Place``, results of remote calls. Nothing here knows images or networks.
``training.on_ray`` runs a training here, ``tuning`` a sweep.
"""
