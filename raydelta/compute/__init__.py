"""What runs where: the cluster, the device, calls on Ray, jobs of a remote cluster; what a user has asked to open.

In: the config and Ray. Out: a running Ray, a ``Place``, results of remote calls. Nothing here knows images or networks.
``training.on_ray`` runs a training here, ``tuning`` a sweep.
"""
