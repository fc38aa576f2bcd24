"""The cold start of the embedded agent: a scripted teacher, training on its traces, figures of the result.

    python -m experiments.coldstart train runs/coldstart      # recreates the shipped checkpoint (16 minutes, two cores)
    python -m experiments.coldstart world runs/world          # the tasks and corpora that the agent is asked about

`teacher` is the scripted agent, `sequences` what the training sees of it, `train` the training, `evaluate` the figures.
The checkpoint itself ships with the package: `deltah.lab.checkpoint_path()`.
"""
