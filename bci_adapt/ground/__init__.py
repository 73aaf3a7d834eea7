"""What every part stands on: files, threads, catalogues of variants, statistics, jobs with content keys."""
