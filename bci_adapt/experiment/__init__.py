"""A cross-session experiment: what is asked, the jobs it becomes, how they are run and settings tuned."""
