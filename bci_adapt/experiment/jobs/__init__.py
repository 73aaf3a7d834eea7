"""The kinds of jobs an experiment is made of. Each file imports only what its job runs, since that is what enters the
job's content key: `run(parameters, inputs, out)` reads files, writes one file or folder, and returns nothing.
"""
